package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/strata-build/strata/diag"
)

// A list that others keep changing is asked for again, and not for ever.
func TestInterruptedListsAreAskedForAgain(t *testing.T) {
	asked := 0
	list := func(interrupted int) func() ([]int, error) {
		asked = 0
		return func() ([]int, error) {
			if asked++; asked <= interrupted {
				return []int{1}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
			}
			return []int{1, 2}, nil
		}
	}
	if got, err := wholeList(list(3)); err != nil || len(got) != 2 || asked != 4 {
		t.Errorf("%v %v after %d times", got, err, asked)
	}
	if _, err := wholeList(list(1 << 30)); diag.KindOf(err) != diag.Exhausted || !errors.Is(err, netlink.ErrDumpInterrupted) || asked != listTries {
		t.Errorf("%v after %d times", err, asked)
	}
	other := errors.New("other")
	if _, err := wholeList(func() ([]int, error) { return nil, other }); err != other {
		t.Errorf("%v", err)
	}
}

// Links that come and go elsewhere on the machine do not make the network of steps fail.
func TestRouterWhileLinksComeAndGo(t *testing.T) {
	needRoot(t)
	host := newHost(t)
	worldNS(t, host)
	h, err := netlink.NewHandleAt(netns.NsHandle(host.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name string) *netlink.Veth {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return &netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}
	}
	for i := range 100 { // more than the kernel lists at once
		if err := h.LinkAdd(pair(fmt.Sprintf("other%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer h.Close()
		for {
			select {
			case <-stop:
				return
			default:
				if comes := pair("comes"); h.LinkAdd(comes) == nil {
					_ = h.LinkDel(comes)
				}
			}
		}
	}()
	defer func() { close(stop); <-done }()
	lister, err := netlink.NewHandleAt(netns.NsHandle(host.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer lister.Close()
	for range 100 {
		if err := sweepLinks(lister, "cccccccc"); err != nil {
			t.Fatal(err)
		}
	}
}

// The firewall is found without the PATH of a login, and one that is in PATH is the only one.
func TestFirewallOutsideOfPath(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	path, err := firewallTool("nft")
	if err != nil {
		t.Skip("nft is not where systems have it")
	}
	if filepath.Base(path) != "nft" || !filepath.IsAbs(path) {
		t.Errorf("%q", path)
	}
	if err := os.WriteFile(filepath.Join(bin, "iptables"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := firewallTool("nft"); err == nil {
		t.Errorf("%q is used although PATH has another firewall", path)
	}
}
