package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// forwarding makes this machine forward the packets of steps without making it a router for others. Where nobody else has turned
// net.ipv4.ip_forward on, it is turned on for each interface, since answers come in there, and the firewall drops what is forwarded
// to anybody but steps. All Stratas of a network namespace share that; the last one turns it off again.
//
// A program that needs a router, such as Docker, turns ip_forward on for all: then the rule goes, and that program is responsible.
type forwarding struct {
	owner string
	ns    *os.File
	done  chan struct{}
	wg    sync.WaitGroup
}

const (
	forwardDir  = "/run/strata" // of what Stratas share
	forwardName = "strata_forward"
	ipv4Conf    = "/proc/sys/net/ipv4/conf/"
)

// newForwarding begins to forward in the calling thread's network namespace, which ns is, for interfaces that come later as well.
func newForwarding(ns *os.File, owner string) (*forwarding, error) {
	f := &forwarding{owner: owner, ns: ns, done: make(chan struct{})}
	if err := f.update(); err != nil {
		return nil, fmt.Errorf("forward IPv4: %w", err)
	}
	links := make(chan netlink.LinkUpdate, 64)
	handle := netns.NsHandle(ns.Fd())
	err := netlink.LinkSubscribeWithOptions(links, f.done, netlink.LinkSubscribeOptions{Namespace: &handle})
	if err != nil {
		return nil, fmt.Errorf("watch the interfaces: %w", err)
	}
	f.wg.Go(func() {
		for l := range links {
			if name := l.Attrs().Name; !ownLink(name) && !forwards(f.ns, name) {
				_ = inNS(f.ns, f.update) // the interface may be gone
			}
		}
	})
	return f, nil
}

func ownLink(name string) bool { return name == "lo" || strings.HasPrefix(name, anyPort) }

// forwards reports whether an interface of a namespace forwards for a reason that still holds.
func forwards(ns *os.File, name string) (yes bool) {
	_ = inNS(ns, func() error {
		_, err := os.Stat(stateFile())
		yes = isOn("all") == (err != nil) && isOn(name)
		return nil
	})
	return yes
}

// isOn reports whether an interface forwards; "all" is ip_forward.
func isOn(name string) bool {
	data, err := os.ReadFile(ipv4Conf + name + "/forwarding")
	return err == nil && string(bytes.TrimSpace(data)) == "1"
}

// forwardOn makes an interface forward.
func forwardOn(name string) error {
	if isOn(name) {
		return nil
	}
	return os.WriteFile(ipv4Conf+name+"/forwarding", []byte("1"), 0)
}

// update lets all interfaces of the calling thread's namespace forward, behind the firewall.
func (f *forwarding) update() error {
	unlock, err := lockForwarding()
	if err != nil {
		return err
	}
	defer unlock()
	if isOn("all") { // by somebody who needs it
		return removeGuard()
	}
	turned := readState()
	var off []string
	dirs, err := os.ReadDir(ipv4Conf)
	for _, d := range dirs {
		name := d.Name()
		if name != "all" && name != "default" && !ownLink(name) && !isOn(name) {
			off = append(off, name)
		}
	}
	if err != nil {
		return err
	}
	turned = append(turned, off...)
	slices.Sort(turned)
	if err := os.WriteFile(stateFile(), []byte(strings.Join(turned, "\n")), 0o600); err != nil {
		return err
	}
	if err := guard(turned); err != nil {
		return err
	}
	for _, name := range off {
		if err := forwardOn(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// close ends the watch and, if no other Strata is left in the calling thread's namespace, puts back what was.
func (f *forwarding) close() {
	close(f.done)
	unlock, err := lockForwarding()
	if err != nil {
		return
	}
	defer unlock()
	links, err := listLinks()
	if err != nil {
		return
	}
	for _, l := range links {
		if name := l.Attrs().Name; ruleOwner.MatchString(name) && name != gatewayName(f.owner) {
			return
		}
	}
	if !isOn("all") {
		for _, name := range readState() {
			_ = os.WriteFile(ipv4Conf+name+"/forwarding", []byte("0"), 0) // the interface may be gone
		}
	}
	_ = removeGuard() // what stays is found by the next one
}

// guard makes the firewall drop what interfaces would forward to anybody but steps. Connections that the machine itself has begun or
// redirects pass.
func guard(interfaces []string) error {
	if len(interfaces) == 0 {
		return nil
	}
	if _, err := firewallTool("nft"); err == nil {
		var names []string
		for _, i := range interfaces {
			names = append(names, fmt.Sprintf("%q", i))
		}
		_, err := firewall(fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname != { %[2]s } accept
		oifname "%[3]s*" accept
		ct state established,related accept
		ct status dnat accept
		drop
	}
}
`, forwardName, strings.Join(names, ", "), anyPort), "nft", "-f", "-")
		return err
	}
	// All at once, in place of what the chain held.
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:%[1]s - [0:0]\n-A %[1]s -o %[2]s+ -j RETURN\n-A %[1]s -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j RETURN\n", forwardName, anyPort)
	for _, i := range interfaces {
		fmt.Fprintf(&b, "-A %s -i %s -j DROP\n", forwardName, i)
	}
	if _, err := firewall("", "iptables", "-w", "-C", "FORWARD", "-j", forwardName); err != nil {
		fmt.Fprintf(&b, "-I FORWARD -j %s\n", forwardName)
	}
	_, err := firewall(b.String()+"COMMIT\n", "iptables-restore", "-w", "--noflush")
	return err
}

// removeGuard removes what update made.
func removeGuard() error {
	if _, err := os.Stat(stateFile()); err != nil {
		return nil
	}
	removeRules()
	if err := os.Remove(stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeRules() {
	if _, err := firewallTool("nft"); err == nil {
		firewall("", "nft", "delete", "table", "ip", forwardName)
		return
	}
	for _, r := range [][]string{{"-D", "FORWARD", "-j", forwardName}, {"-F", forwardName}, {"-X", forwardName}} {
		firewall("", "iptables", append([]string{"-w"}, r...)...)
	}
}

// stateFile lists the interfaces of the calling thread's network namespace that a Strata lets forward.
func stateFile() string {
	var st unix.Stat_t
	_ = unix.Stat("/proc/thread-self/ns/net", &st) // it always exists
	return filepath.Join(forwardDir, fmt.Sprintf("forward-%d", st.Ino))
}

// readState returns the listed interfaces that forward indeed. The rest is of a namespace that is gone.
func readState() []string {
	data, _ := os.ReadFile(stateFile())
	return slices.DeleteFunc(strings.Fields(string(data)), func(name string) bool {
		return strings.Contains(name, "/") || !isOn(name)
	})
}

// lockForwarding waits until no other Strata changes how this machine forwards.
func lockForwarding() (unlock func(), err error) {
	if err := os.MkdirAll(forwardDir, 0o711); err != nil {
		return nil, err
	}
	l, err := os.OpenFile(filepath.Join(forwardDir, "forward.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(l.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(diag.Errorf(diag.Unavailable, "lock %s: %w", l.Name(), err), l.Close())
	}
	return func() { l.Close() }, nil
}
