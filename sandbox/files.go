package sandbox

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// hostsFile makes /etc/hosts. Gateway is what the name "host-gateway" stands for.
func hostsFile(hostname string, extra []graph.HostIP, gateway string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostname)
	for _, h := range extra {
		ip := strings.TrimSuffix(strings.TrimPrefix(h.IP, "["), "]")
		if ip == "host-gateway" {
			ip = gateway
		}
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, diag.Errorf(diag.Invalid, "extra host %q: %q is not an IP address", h.Host, h.IP)
		}
		if h.Host == "" || strings.ContainsAny(h.Host, " \t\r\n#") {
			return nil, diag.Errorf(diag.Invalid, "invalid name %q of an extra host", h.Host)
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, h.Host)
	}
	return b.Bytes(), nil
}

// resolvConf is the resolver configuration of resolv.conf(5), as far as builds see it.
type resolvConf struct{ servers, search, options []string }

// fallbackDNS is asked where the host has no name server of its own, as Docker does.
const fallbackDNS = "8.8.8.8"

// readResolvConf reads a file; one that is not there is empty.
func readResolvConf(name string) resolvConf {
	var c resolvConf
	data, _ := os.ReadFile(name)
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			c.servers = append(c.servers, f[1])
		case "search", "domain": // the last one counts
			c.search = f[1:]
		case "options":
			c.options = append(c.options, f[1:]...)
		}
	}
	return c
}

// override puts the step's choices in place of the host's.
func (c resolvConf) override(d DNS) resolvConf {
	if len(d.Servers) > 0 {
		c.servers = d.Servers
	}
	if len(d.Search) > 0 {
		c.search = d.Search
	}
	if len(d.Options) > 0 {
		c.options = d.Options
	}
	return c
}

// reachable reports whether all servers can be asked from another network namespace that has IPv4 only.
func (c resolvConf) reachable() bool {
	return len(c.servers) > 0 && !slices.ContainsFunc(c.servers, func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err != nil || !ip.Is4() || ip.IsLoopback()
	})
}

func (c resolvConf) bytes() []byte {
	var b bytes.Buffer
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	for _, s := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	return b.Bytes()
}
