package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// nat is the firewall's part of a bridge: steps go out with the address of this machine, and nothing comes in that they did not
// ask for. It is a table of its own for nft; with iptables, rules that carry the owner in a comment.
type nat struct{ owner string }

// newNAT sets the rules up in the calling thread's network namespace.
func newNAT(owner, bridge string, subnet netip.Prefix) (*nat, error) {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return nil, fmt.Errorf("forward IPv4: %w", err)
	}
	n := &nat{owner: owner}
	n.remove()
	_, noNFT := exec.LookPath("nft")
	_, noIPT := exec.LookPath("iptables")
	switch {
	case noNFT == nil:
		if _, err := firewall(n.table(bridge, subnet), "nft", "-f", "-"); err != nil {
			return nil, err
		}
		// A drop in any table wins, and Docker's policy for forwarding is to drop.
		if noIPT == nil {
			if rules, err := firewall("", "iptables", "-S", "FORWARD"); err == nil && strings.Contains(rules, "-P FORWARD DROP") {
				return n, n.iptables(n.forwardRules(bridge))
			}
		}
		return n, nil
	case noIPT == nil:
		masquerade := []string{"-t", "nat", "-I", "POSTROUTING", "-s", subnet.String(), "!", "-o", bridge, "-j", "MASQUERADE"}
		return n, n.iptables(append(n.forwardRules(bridge), masquerade))
	}
	return nil, errors.New("neither nft nor iptables is installed")
}

func (n *nat) table(bridge string, subnet netip.Prefix) string {
	return fmt.Sprintf(`table ip strata_%[1]s {
	chain post {
		type nat hook postrouting priority 100; policy accept;
		ip saddr %[3]s oifname != %[2]q masquerade
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		oifname %[2]q ct state established,related accept
		oifname %[2]q drop
	}
}
`, n.owner, bridge, subnet)
}

func (n *nat) forwardRules(bridge string) [][]string {
	return [][]string{
		{"-I", "FORWARD", "-o", bridge, "-j", "DROP"},
		{"-I", "FORWARD", "-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
		{"-I", "FORWARD", "-i", bridge, "!", "-o", bridge, "-j", "ACCEPT"},
	}
}

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

// remove takes all rules of the owner away, whoever set them.
func (n *nat) remove() error {
	if _, err := exec.LookPath("nft"); err == nil {
		firewall("", "nft", "delete", "table", "ip", "strata_"+n.owner)
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		return nil
	}
	for _, table := range []string{"nat", "filter"} {
		rules, _ := firewall("", "iptables", "-w", "-t", table, "-S")
		for line := range strings.Lines(rules) {
			if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "); ok && strings.Contains(rule, n.tag()) {
				firewall("", "iptables", append([]string{"-w", "-t", table, "-D"}, strings.Fields(strings.ReplaceAll(rule, `"`, ""))...)...)
			}
		}
	}
	return nil
}

// firewall runs a firewall tool and returns what it printed; its complaint becomes the error.
func firewall(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("%s: %s", name, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}
