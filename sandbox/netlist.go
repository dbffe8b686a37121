package sandbox

import (
	"errors"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strata-build/strata/diag"
)

// listTries is how often a list of the kernel's is asked for, with listPause in between.
const (
	listTries = 200
	listPause = 2 * time.Millisecond
)

// wholeList asks the kernel for links or routes until it gets a list that nobody changed while the kernel wrote it. Other lists may
// lack entries: on a machine where containers come and go, the kernel marks many lists as such.
func wholeList[T any](list func() ([]T, error)) ([]T, error) {
	for range listTries - 1 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
		time.Sleep(listPause)
	}
	out, err := list()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = diag.Errorf(diag.Exhausted, "the links or routes of this machine change faster than they can be listed: %w", err)
	}
	return out, err
}

// listLinks returns all links of the calling thread's network namespace.
func listLinks() ([]netlink.Link, error) { return wholeList(netlink.LinkList) }

// firewallTool finds a tool of the firewall in PATH. If PATH has no firewall at all, it looks where systems have theirs: the PATH of
// users who became root without a login lacks these directories.
func firewallTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, other := range []string{"nft", "iptables"} {
		if _, found := exec.LookPath(other); found == nil {
			return "", err
		}
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, found := exec.LookPath(filepath.Join(dir, name)); found == nil {
			return path, nil
		}
	}
	return "", err
}
