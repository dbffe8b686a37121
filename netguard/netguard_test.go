package netguard

import (
	"net/netip"
	"testing"
)

func TestIsMetadata(t *testing.T) {
	for s, want := range map[string]bool{
		"169.254.169.254": true, "169.254.0.1": true, "100.100.100.200": true, "192.0.0.192": true, "168.63.129.16": true,
		"fe80::1": true, "fe80::1%eth0": true, "fd00:ec2::254": true, "fd20:ce::254": true,
		"::ffff:169.254.169.254": true, "64:ff9b::a9fe:a9fe": true, "::a9fe:a9fe": true, "2002:a9fe:a9fe::": true,
		"127.0.0.1": false, "10.0.0.1": false, "100.100.100.201": false, "169.253.1.1": false, "8.8.8.8": false, "::1": false,
		"fd00:ec2::253": false, "2002:808:808::": false, "64:ff9b::808:808": false,
	} {
		if got := IsMetadata(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
	if p := Metadata(); len(p) == 0 {
		t.Error("no networks")
	} else if p[0] = netip.MustParsePrefix("1.2.3.0/24"); IsMetadata(netip.MustParseAddr("1.2.3.4")) {
		t.Error("a caller changed the list")
	}
}
