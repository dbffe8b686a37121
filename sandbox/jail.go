package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/spawn"
)

// start makes the container's namespaces and mounts and starts its program. It must have its own thread, which is left in
// the namespaces. All that can be done before there is a process is done here, by this process, so that errors are plain;
// what needs the new process is written down for it by program.
func (j *jail) start() (int, error) {
	s := j.spec
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return 0, fmt.Errorf("make namespaces: %w", err)
	}
	if err := j.enterNetwork(); err != nil {
		return 0, err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return 0, fmt.Errorf("set the host name: %w", err)
	}
	// Nothing goes back to the host. What the host unmounts in the meantime goes here too.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return 0, fmt.Errorf("separate the mounts: %w", err)
	}
	unix.Umask(0)
	err := j.fileSystem()
	defer j.null.Close()
	if err != nil {
		return 0, err
	}
	unix.Umask(0o022)
	fds, err := j.stdio.fds()
	if err != nil {
		return 0, err
	}
	p, err := j.program(fds)
	if err != nil {
		return 0, err
	}
	opt := spawn.Options{Flags: unix.CLONE_NEWPID, PIDFD: &j.pidfd}
	if j.group.v2 != nil {
		opt.Cgroup = int(j.group.v2.Fd())
	}
	return p.Start(opt)
}

func (j *jail) enterNetwork() error {
	for _, ns := range j.spec.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace {
			continue
		}
		if ns.Path == "" {
			return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
		}
		f, err := os.Open(ns.Path)
		if err != nil {
			return fmt.Errorf("open the network: %w", err)
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network: %w", err)
		}
	}
	return nil
}

// fileSystem mounts all but /proc and makes the result this thread's root.
func (j *jail) fileSystem() error {
	s := j.spec
	if err := unix.Mount(s.Root.Path, s.Root.Path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind the root file system: %w", err)
	}
	if err := unix.Mount("", s.Root.Path, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("separate the root file system: %w", err)
	}
	root, err := os.OpenFile(s.Root.Path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	m := &mounter{root: root, path: s.Root.Path, cgroups: j.cgroups, group: s.Linux.CgroupsPath}
	defer m.close()
	mounts, err := m.engineDev(s.Mounts)
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		if err := m.mount(mount); err != nil {
			return fmt.Errorf("mount %s: %w", mount.Destination, err)
		}
	}
	if len(mounts) < len(s.Mounts) { // the step has no /dev of its own
		if err := m.devices(s.Linux.Devices); err != nil {
			return fmt.Errorf("make devices: %w", err)
		}
	}
	if err := m.readOnly(s); err != nil {
		return err
	}
	j.null, m.null = m.null, nil
	return pivot(root)
}

// readOnly makes file systems in memory and the root read-only, now that all mount points in them are made.
func (m *mounter) readOnly(s *specs.Spec) error {
	for _, mount := range s.Mounts {
		if mount.Type != "tmpfs" || !slices.Contains(mount.Options, "ro") {
			continue
		}
		f, err := m.open(mount.Destination, unix.O_PATH)
		if err == nil {
			err = setAttributes(f, 0, unix.MOUNT_ATTR_RDONLY, 0)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", mount.Destination, err)
		}
	}
	if s.Root.Readonly {
		if err := setAttributes(m.root, 0, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
			return fmt.Errorf("make the root file system read-only: %w", err)
		}
	}
	return nil
}

// pivot makes a mount this thread's root and lets go of the old one.
func pivot(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return fmt.Errorf("enter the root file system: %w", err)
	}
	// With the same place for both, the old root lies on top of the new one, and comes away by its name.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// mounter mounts things in a root file system that this thread can see as path.
type mounter struct {
	root    *os.File
	path    string
	cgroups *cgroups
	group   string   // control group of the container
	dev     *os.File // the engine's /dev, also when the step mounts something over it
	null    *os.File // the null device in it
}

func (m *mounter) close() {
	m.dev.Close() // nil is an error that does not matter
	m.null.Close()
}

// open opens a path in the root. Symbolic links stay in it.
func (m *mounter) open(name string, flags int) (*os.File, error) {
	fd, err := openat2(int(m.root.Fd()), name, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// target opens a mount point, and makes it if it is not there.
func (m *mounter) target(at string, file bool) (*os.File, error) {
	f, err := m.open(at, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		var real string
		if real, err = resolve(m.path, at); err != nil {
			return nil, err
		}
		if _, err = makePath(m.root, real, newNode{file: file}, nil); err != nil {
			return nil, err
		}
		f, err = m.open(real, unix.O_PATH|unix.O_NOFOLLOW)
	}
	if err != nil {
		return nil, err
	}
	where, err := os.Readlink(fdPath(f.Fd()))
	if err == nil && (where == m.path || !below(where, m.path)) {
		err = fmt.Errorf("the mount point leads to %s", where)
	}
	if dir := inKernelFiles(strings.TrimPrefix(where, m.path)); err == nil && dir != "" && !below(cleanPath(at), dir) {
		err = fmt.Errorf("the mount point leads into %s", dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// plain opens a directory by a name that has no symbolic links, and makes it if it is not there.
func (m *mounter) plain(at string) (*os.File, error) {
	if _, err := makePath(m.root, at, newNode{}, nil); err != nil {
		return nil, err
	}
	fd, err := openat2(int(m.root.Fd()), "."+at, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, fmt.Errorf("must be an ordinary directory: %w", err)
	}
	return os.NewFile(uintptr(fd), at), nil
}

func (m *mounter) mount(s specs.Mount) error {
	o, err := parseOptions(s)
	if err != nil {
		return err
	}
	switch s.Type {
	case "bind":
		return m.bind(s, o)
	case "proc": // by the new process
		f, err := m.plain(s.Destination)
		if err == nil {
			f.Close()
		}
		return err
	}
	var f *os.File
	if s.Type == "sysfs" {
		f, err = m.plain(s.Destination)
	} else {
		f, err = m.target(s.Destination, false)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	switch s.Type {
	case "cgroup":
		return m.cgroup(f, o)
	case "tmpfs":
		o.flags &^= unix.MS_RDONLY // not yet
		if !strings.Contains(o.data, "mode=") {
			st, err := f.Stat()
			if err != nil {
				return err
			}
			o.data = strings.Trim(fmt.Sprintf("mode=%#o,%s", st.Mode().Perm(), o.data), ",")
		}
	}
	return unix.Mount(s.Source, fdPath(f.Fd()), s.Type, o.flags, o.data)
}

// bind mounts a file or directory.
func (m *mounter) bind(s specs.Mount, o mountOptions) error {
	tree, err := cloneTree(s.Source, o.flags&unix.MS_REC != 0)
	if err != nil {
		return fmt.Errorf("the source %s: %w", s.Source, err)
	}
	defer tree.Close()
	st, err := tree.Stat()
	if err != nil {
		return err
	}
	if set := o.flags &^ (unix.MS_BIND | unix.MS_REC); set != 0 || o.cleared != 0 {
		// Flags of the source that are not asked for go, where they are not locked.
		all := attributes(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		err := setAttributes(tree, 0, attributes(set), all&^attributes(set))
		if errors.Is(err, unix.EPERM) {
			err = setAttributes(tree, 0, attributes(set), 0)
		}
		if err == nil && set&unix.MS_RDONLY != 0 {
			err = setAttributes(tree, unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY, 0)
		}
		if err != nil {
			return fmt.Errorf("set its options: %w", err)
		}
	}
	to, err := m.target(s.Destination, !st.IsDir())
	if err != nil {
		return err
	}
	defer to.Close()
	return attachTree(tree, to)
}

// cgroup shows the container its own control group, in a directory of hierarchies with version 1.
func (m *mounter) cgroup(at *os.File, o mountOptions) error {
	c, attrs := m.cgroups, attributes(o.flags)
	if c.unified {
		return m.showGroup(path.Join(c.v2, m.group), at, attrs)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", fdPath(at.Fd()), "tmpfs", flags, "mode=755"); err != nil {
		return err
	}
	dir, err := m.open("/sys/fs/cgroup", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, root := range c.roots {
		if root == c.v2 {
			continue
		}
		name := path.Base(root)
		if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil {
			return err
		}
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := os.NewFile(uintptr(fd), name)
		err = m.showGroup(path.Join(root, m.group), to, attrs)
		to.Close()
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		for alias := range strings.SplitSeq(name, ",") {
			if alias != name {
				if err := unix.Symlinkat(name, int(dir.Fd()), alias); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (m *mounter) showGroup(dir string, at *os.File, attrs uint64) error {
	tree, err := cloneTree(dir, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := setAttributes(tree, 0, attrs, 0); err != nil {
		return err
	}
	return attachTree(tree, at)
}

// cloneTree makes a mount of a directory or file, at no place yet.
func cloneTree(source string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	tree := os.NewFile(uintptr(fd), source)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if err != nil {
		tree.Close()
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return tree, nil
}

func attachTree(tree, at *os.File) error {
	return os.NewSyscallError("move_mount", unix.MoveMount(int(tree.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

func setAttributes(mount *os.File, how uint, set, clear uint64) error {
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH|how, &unix.MountAttr{Attr_set: set, Attr_clr: clear}))
}
