package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// links lists the network interfaces of the site's engine.
func (s *site) links() []string {
	_, owner := s.owner()
	found, _ := filepath.Glob("/sys/class/net/stra*" + owner + "*")
	return found
}

// tables reports whether the firewall has rules of the site's engine.
func (s *site) tables() bool {
	_, owner := s.owner()
	nft, _ := exec.Command("nft", "list", "tables").Output()
	ipt, _ := exec.Command("iptables-save").Output()
	return strings.Contains(string(nft), "strata_"+owner) || strings.Contains(string(ipt), "strata-"+owner)
}

// TestNetworkOfAKilledEngine kills an engine whose root is never used again. The kernel removes its interfaces, with their addresses
// and routes, and the engine of any other root removes its firewall rules.
func TestNetworkOfAKilledEngine(t *testing.T) {
	needBuild(t)
	dead, next := newSite(t), newSite(t)
	dead.base()
	dead.write("Dockerfile", "FROM base\nRUN echo be\"\"gun && sleep 1000\n")
	p := dead.start(buildArgs()...)
	p.until(" begun")
	if len(dead.links()) < 2 || !dead.tables() {
		t.Errorf("a step has no network: %v", dead.links())
	}
	dead.killEngine()
	p.result()
	dead.wait("the kernel to remove the interfaces", func() bool { return len(dead.links()) == 0 })

	next.base()
	next.write("Dockerfile", "FROM base\nRUN true\n")
	next.ok(buildArgs()...)
	if dead.tables() {
		t.Error("the firewall rules of the dead engine are left")
	}
	if len(next.links()) == 0 || !next.tables() {
		t.Error("the other engine has no network")
	}
	dead.ok("image", "ls") // it sweeps the rest
}
