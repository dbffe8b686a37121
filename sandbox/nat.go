package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/strata-build/strata/diag"
)

// nat is the firewall's part of a router: steps go out with the address of this machine, each sends with its own address only, and
// nothing comes in that they did not ask for. It is a table of its own for nft; with iptables, rules that carry the owner in a
// comment.
type nat struct {
	owner   string
	subnet  netip.Prefix
	refused []netip.Prefix // IPv4: no step may send there
}

// newNAT sets the rules up in the calling thread's network namespace.
func newNAT(owner string, subnet netip.Prefix, refused []netip.Prefix) (*nat, error) {
	n := &nat{owner: owner, subnet: subnet}
	for _, p := range append([]netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"),        // of this machine, if it has route_localnet
		netip.MustParsePrefix("224.0.0.0/4"),        // multicast
		netip.MustParsePrefix("255.255.255.255/32"), // broadcast
		netip.PrefixFrom(lastAddr(subnet), 32),
	}, refused...) {
		if p.Addr().Is4() {
			n.refused = append(n.refused, p)
		}
	}
	rules := n.remove()
	_, noNFT := firewallTool("nft")
	_, noIPT := firewallTool("iptables")
	switch {
	case noNFT == nil:
		if _, err := firewall(n.table(), "nft", "-f", "-"); err != nil {
			return nil, err
		}
		// A drop in any table wins, and Docker's policy for forwarding is to drop.
		if strings.Contains(rules, "\n:FORWARD DROP") {
			return n, n.iptables(n.forwardRules())
		}
		return n, nil
	case noIPT == nil:
		return n, n.iptables(n.allRules())
	}
	return nil, diag.Errorf(diag.Unsupported, "neither nft nor iptables is installed")
}

func lastAddr(p netip.Prefix) netip.Addr {
	ip := p.Addr().As4()
	ip[3] = 255
	return netip.AddrFrom4(ip)
}

// table is the table of nft. The first chain comes before the kernel follows connections and rewrites addresses.
func (n *nat) table() string {
	var ports, refused []string
	for ip := n.subnet.Addr().Next().Next(); ip != lastAddr(n.subnet); ip = ip.Next() {
		ports = append(ports, fmt.Sprintf("%q . %s", portName(n.owner, ip), ip))
	}
	for _, p := range n.refused {
		refused = append(refused, p.String())
	}
	return fmt.Sprintf(`table ip %[1]s {
	set ports {
		type ifname . ipv4_addr
		elements = { %[2]s }
	}
	set refused {
		type ipv4_addr; flags interval; auto-merge
		elements = { %[3]s }
	}
	chain pre {
		type filter hook prerouting priority -300; policy accept;
		iifname "%[4]s*" iifname . ip saddr != @ports drop
		iifname "%[4]s*" ip daddr @refused drop
		iifname != "lo" iifname != "%[4]s*" ip daddr %[5]s drop
	}
	chain post {
		type nat hook postrouting priority 100; policy accept;
		ip saddr %[5]s oifname != "%[4]s*" masquerade
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "%[4]s*" oifname "%[6]s*" drop
		oifname "%[4]s*" ct state established,related accept
		oifname "%[4]s*" drop
	}
}
`, tableName(n.owner), strings.Join(ports, ", "), strings.Join(refused, ", "), portPrefix(n.owner), n.subnet, anyPort)
}

// allRules are the rules for iptables, each of which comes before the one above it.
func (n *nat) allRules() [][]string {
	port := portPrefix(n.owner) + "+"
	rules := append(n.forwardRules(), []string{"-t", "nat", "-I", "POSTROUTING", "-s", n.subnet.String(), "!", "-o", port, "-j", "MASQUERADE"})
	for _, p := range n.refused {
		rules = append(rules, []string{"-t", "raw", "-I", "PREROUTING", "-i", port, "-d", p.String(), "-j", "DROP"})
	}
	return append(rules,
		[]string{"-t", "raw", "-I", "PREROUTING", "!", "-i", port, "-d", n.subnet.String(), "-j", "DROP"},
		[]string{"-t", "raw", "-I", "PREROUTING", "-i", "lo", "-d", n.subnet.String(), "-j", "ACCEPT"},
		// The route of an address leads to its link, and to no other.
		[]string{"-t", "raw", "-I", "PREROUTING", "-i", port, "-m", "rpfilter", "--invert", "-j", "DROP"})
}

func (n *nat) forwardRules() [][]string {
	port, any := portPrefix(n.owner)+"+", anyPort+"+"
	return [][]string{
		{"-I", "FORWARD", "-o", port, "-j", "DROP"},
		{"-I", "FORWARD", "-o", port, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
		{"-I", "FORWARD", "-i", port, "-j", "ACCEPT"},
		{"-I", "FORWARD", "-i", port, "-o", any, "-j", "DROP"},
	}
}

func tableName(owner string) string { return "strata_" + owner }

// tag marks rules as this owner's.
func (n *nat) tag() string { return "strata-" + n.owner }

func (n *nat) iptables(rules [][]string) error {
	for _, r := range rules {
		if _, err := firewall("", "iptables", append(append([]string{"-w"}, r...), "-m", "comment", "--comment", n.tag())...); err != nil {
			return err
		}
	}
	return nil
}

// ruleOwner finds an owner in the listings of the firewall's tools.
var ruleOwner = regexp.MustCompile(`\bstrata[-_]([0-9a-f]{8})\b`)

// remove removes all rules of the owner, whoever set them, and those of owners that are gone: the kernel has removed their gateways.
// It returns the rules of iptables as they were.
func (n *nat) remove() string {
	stale := func(line string) bool {
		m := ruleOwner.FindStringSubmatch(line)
		return m != nil && (m[1] == n.owner || !gatewayExists(m[1]))
	}
	if _, err := firewallTool("nft"); err == nil {
		tables, _ := firewall("", "nft", "list", "tables", "ip")
		for line := range strings.Lines(tables) {
			if stale(line) {
				firewall("", "nft", "delete", "table", "ip", strings.Fields(line)[2])
			}
		}
	}
	if _, err := firewallTool("iptables-save"); err != nil {
		return ""
	}
	rules, _ := firewall("", "iptables-save")
	table := ""
	for line := range strings.Lines(rules) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if rule, ok := strings.CutPrefix(line, "-A "); ok && stale(rule) {
			firewall("", "iptables", append([]string{"-w", "-t", table, "-D"}, strings.Fields(strings.ReplaceAll(rule, `"`, ""))...)...)
		}
	}
	return rules
}

// gatewayExists reports whether an owner has a gateway in this thread's network namespace.
func gatewayExists(owner string) bool {
	_, err := netlink.LinkByName(gatewayName(owner))
	var missing netlink.LinkNotFoundError
	return !errors.As(err, &missing)
}

// firewall runs a firewall tool and returns what it printed; its complaint becomes the error.
func firewall(stdin, name string, args ...string) (string, error) {
	path, err := firewallTool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("%s: %s", name, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}
