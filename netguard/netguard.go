// Package netguard knows the addresses that what a build names must not lead to: those of the link, and of the services by which
// clouds give machines their credentials.
//
// Check addresses when the connection is made, after names were resolved: a name may stand for another address the next time.
package netguard

import (
	"net/netip"
	"slices"

	"github.com/strata-build/strata/diag"
)

// metadata are the link's own addresses, among them the metadata services of most clouds, and those that are elsewhere: of AWS
// over IPv6, Alibaba Cloud, Oracle Cloud, Azure's host, and Google Cloud over IPv6.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("192.0.0.192/32"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
	netip.MustParsePrefix("fd20:ce::254/128"),
}

// Metadata returns the networks of link-local addresses and metadata services.
func Metadata() []netip.Prefix { return slices.Clone(metadata) }

// IsMetadata reports whether an address is one of Metadata, in whatever form: as IPv6, or in an IPv6 address that a translator
// (RFC 6052, NAT64) or a tunnel (RFC 3056, 6to4) sends there.
func IsMetadata(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return true
	}
	if !ip.Is6() {
		return false
	}
	b := ip.As16()
	var inner [4]byte
	switch {
	case nat64.Contains(ip), compatible.Contains(ip):
		inner = [4]byte(b[12:])
	case sixToFour.Contains(ip):
		inner = [4]byte(b[2:6])
	default:
		return false
	}
	v4 := netip.AddrFrom4(inner)
	return slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(v4) })
}

// Refuse is the error for an address that a source is at.
func Refuse(ip netip.Addr) error {
	return diag.Errorf(diag.Denied, "%s is a link-local address or one of a cloud's metadata service", ip).
		WithHint("to let builds reach it, start the daemon with --allow-metadata, or set STRATA_ALLOW_METADATA=1")
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	compatible = netip.MustParsePrefix("::/96") // RFC 4291, deprecated
	sixToFour  = netip.MustParsePrefix("2002::/16")
)
