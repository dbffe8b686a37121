package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// maxLower is how many lower layers one overlay mount takes (OVL_MAX_STACK in Linux' fs/overlayfs). More layers become
// a mount of their own, which is the lowest layer of the next; overlayfs stacks two deep.
const maxLower = 499

// maxOption is the length of the longest value that fsconfig(2) takes.
const maxOption = 255

// overlay describes a mount. Layers are directories, top first.
type overlay struct {
	lower       []string
	upper, work string // "" = read-only
	temp        func() (dir string, cleanup func(), err error)
}

// mount makes the mount at target and returns how to undo it.
func (o overlay) mount(target string) (unmount func() error, err error) {
	lower, cleanup, err := o.padded()
	if err != nil {
		return nil, err
	}
	o.lower = lower
	fd, err := o.detached()
	if err == nil {
		err = unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil {
			err = &os.PathError{Op: "move_mount", Path: target, Err: err}
		}
		unix.Close(fd)
	}
	if err != nil {
		return nil, errors.Join(err, cleanup())
	}
	return func() error { return errors.Join(o.unmount(target), cleanup()) }, nil
}

// padded adds empty directories at the bottom, which change nothing, until there are as many as overlayfs wants. They
// have to stay as long as the mount does.
func (o overlay) padded() (lower []string, cleanup func() error, err error) {
	least := 2
	if o.upper != "" {
		least = 1
	}
	if len(o.lower) >= least {
		return o.lower, func() error { return nil }, nil
	}
	dir, remove, err := o.temp()
	if err != nil {
		return nil, nil, err
	}
	lower = append(lower, o.lower...)
	for len(lower) < least {
		empty := filepath.Join(dir, fmt.Sprint("empty", len(lower)))
		if err := os.Mkdir(empty, 0o755); err != nil {
			remove()
			return nil, nil, err
		}
		lower = append(lower, empty)
	}
	return lower, func() error { remove(); return nil }, nil
}

// unmount detaches the mount and empties the work directory. A volatile overlay leaves a mark there that would keep the
// next mount from using it.
func (o overlay) unmount(target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "umount", Path: target, Err: err}
	}
	if o.work == "" {
		return nil
	}
	left, err := os.ReadDir(o.work)
	for _, e := range left {
		err = errors.Join(err, os.RemoveAll(filepath.Join(o.work, e.Name())))
	}
	return err
}

// detached makes a mount that is attached nowhere.
func (o overlay) detached() (fd int, err error) {
	if len(o.lower) > maxLower {
		low, done, err := o.foundation()
		if err != nil {
			return -1, err
		}
		defer done() // the mount keeps what it needs of it
		o.lower = append(append([]string(nil), o.lower[:maxLower-1]...), low)
	}
	fd, err = o.fsmount()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		fd, err = o.oldMount() // before Linux 6.8 there is no lowerdir+
	}
	if err != nil {
		return -1, explainMount(err)
	}
	return fd, nil
}

// foundation mounts the layers below the first maxLower-1 read-only.
func (o overlay) foundation() (dir string, done func(), err error) {
	rest := o.lower[maxLower-1:]
	if len(rest) > maxLower {
		return "", nil, diag.Errorf(diag.Exhausted, "%d layers are more than overlayfs can stack (%d)", len(o.lower), 2*maxLower-1).
			WithHint("squash some of the layers")
	}
	dir, cleanup, err := o.temp()
	if err != nil {
		return "", nil, err
	}
	below := overlay{lower: rest, temp: o.temp}
	unmount, err := below.mount(dir)
	if err != nil {
		cleanup()
		return "", nil, err
	}
	return dir, func() { _ = unmount(); cleanup() }, nil
}

// options are the flags of every mount. The features that they turn off would make a layer depend on the place where it
// was written, or have it hold less than its files. "volatile" leaves out a sync of the whole file system when the mount
// ends: the store makes layers durable.
func (o overlay) options() [][2]string {
	opts := [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"}}
	if o.upper != "" {
		opts = append(opts, [2]string{"volatile", ""})
	}
	return opts
}

func (o overlay) fsmount() (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	var long []int
	defer func() {
		for _, fd := range long {
			unix.Close(fd)
		}
	}()
	set := func(key, value string) error {
		var err error
		if len(value) > maxOption {
			fd, err := openRoot(value)
			if err != nil {
				return err
			}
			long = append(long, fd)
			value = fdPath(fd)
		}
		if value == "" {
			err = unix.FsconfigSetFlag(fs, key)
		} else {
			err = unix.FsconfigSetString(fs, key, value)
		}
		if err != nil {
			return fmt.Errorf("overlay option %s=%s: %w", key, value, withLog(fs, err))
		}
		return nil
	}
	for _, l := range o.lower {
		if err := set("lowerdir+", l); err != nil {
			return -1, err
		}
	}
	opts := o.options()
	if o.upper != "" {
		opts = append([][2]string{{"upperdir", o.upper}, {"workdir", o.work}}, opts...)
	}
	for _, kv := range opts {
		if err := set(kv[0], kv[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("overlay: %w", withLog(fs, err))
	}
	attrs := 0
	if o.upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	return fd, nil
}

// withLog adds what the kernel says of the failure; see fsconfig(2).
func withLog(fs int, err error) error {
	var buf [512]byte
	n, rerr := unix.Read(fs, buf[:])
	if rerr != nil || n <= 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
}

// oldMount uses mount(2), whose options are one page at most: the layers are named by open files to be short.
func (o overlay) oldMount() (int, error) {
	var lower []string
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for _, l := range o.lower {
		fd, err := openRoot(l)
		if err != nil {
			return -1, err
		}
		open = append(open, fd)
		lower = append(lower, fdPath(fd))
	}
	opts := []string{"lowerdir=" + strings.Join(lower, ":")}
	if o.upper != "" {
		opts = append(opts, "upperdir="+o.upper, "workdir="+o.work)
	}
	for _, kv := range o.options() {
		opts = append(opts, strings.TrimSuffix(kv[0]+"="+kv[1], "="))
	}
	text := strings.Join(opts, ",")
	if len(text) >= os.Getpagesize() {
		return -1, diag.Errorf(diag.Exhausted, "%d layers are more than this kernel can stack", len(o.lower)).
			WithHint("Linux 6.8 or later takes more")
	}
	dir, cleanup, err := o.temp()
	if err != nil {
		return -1, err
	}
	defer cleanup()
	var flags uintptr
	if o.upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", dir, "overlay", flags, text); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	return fd, nil
}

func explainMount(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return diag.Errorf(diag.Denied, "the layers cannot be mounted: %w", err).
			WithHint("run as root, or where user namespaces may mount overlayfs")
	case errors.Is(err, unix.ENODEV):
		return diag.Errorf(diag.Unsupported, "the layers cannot be mounted: %w", err).WithHint("this kernel has no overlayfs")
	}
	return diag.Errorf(diag.Internal, "the layers cannot be mounted: %w", err)
}
