package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sweep removes what a process that owned the same state directory left when it died: containers, control groups, mounts, the
// links, firewall rules, files. Network namespaces and their links have gone with the process. It must run before
// the first step. It does what it can and returns all that went wrong.
func (s *Sandbox) Sweep(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil // nothing can have run
	}
	c, err := findCgroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range append(recordedGroups(s.root), recordedGroup{group: "/" + cgroupName(s.owner)}) {
		errs = append(errs, g.sweep(c))
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.root))
	errs = append(errs, err)
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Mountpoint != s.root {
			errs = append(errs, unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH))
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(s.root, "run")), os.RemoveAll(s.runtimeDir()), sweepNetwork(s.owner))
	if err := ctx.Err(); err != nil {
		return errors.Join(append(errs, context.Cause(ctx))...)
	}
	(&nat{owner: s.owner}).remove()
	errs = append(errs, sweepCNI(ctx, s.net.cfg.CNI, s.cniDir()))
	return errors.Join(errs...)
}

// sweepNetwork removes the links of a dead owner that the kernel has not removed yet, and a bridge of an earlier version.
func sweepNetwork(owner string) error {
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return sweepLinks(h, owner)
}

// cgroupFile is a file of a bundle with the control group of its container, if that is not in the sandbox's own.
const cgroupFile = "cgroup"
