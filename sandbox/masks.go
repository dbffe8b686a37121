package sandbox

import (
	"fmt"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/spawn"
)

// engineDev mounts the file system in memory that is the container's /dev and makes the null device in it, before anything of the
// step is mounted. The masks are made of that device, by its descriptor: a step that mounts something of its own at /dev or
// at /dev/null hides the engine's device, and does not replace it. It returns the mounts that are left to make.
func (m *mounter) engineDev(mounts []specs.Mount) ([]specs.Mount, error) {
	dev := specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=64k"}}
	left := slices.Clone(mounts)
	if i := slices.IndexFunc(left, isDev); i >= 0 {
		dev = left[i]
		left = slices.Delete(left, i, i+1)
	}
	if err := m.mount(dev); err != nil {
		return nil, fmt.Errorf("mount /dev: %w", err)
	}
	var err error
	if m.dev, err = m.open("/dev", unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return nil, err
	}
	if err := makeDevice(int(m.dev.Fd()), "null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)); err != nil {
		return nil, err
	}
	fd, err := openat2(int(m.dev.Fd()), "null", unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	m.null = os.NewFile(uintptr(fd), "null")
	return left, checkNull(m.null)
}

// isDev reports whether a mount is a /dev that the engine fills.
func isDev(m specs.Mount) bool { return m.Type == "tmpfs" && m.Destination == "/dev" }

// checkNull refuses a file that is not the null device. Only the number tells.
func checkNull(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return fmt.Errorf("%s is not the null device", f.Name())
	}
	return nil
}

// hide covers files with the null device, and directories with an empty file system. A path that is missing is left out; the
// device cannot be missing, so that no other error is taken for that.
func (j *jail) hide(p *spawn.Program, paths []string) {
	if len(paths) == 0 {
		return
	}
	null, tmpfs := p.String(fdPath(j.null.Fd())), p.String("tmpfs")
	p.Call("find the engine's null device", unix.SYS_FACCESSAT, atCwd, null, 0)
	for _, name := range paths {
		at := p.String(name)
		p.Call("hide "+name, unix.SYS_MOUNT, null, at, 0, unix.MS_BIND).OK(2).On(unix.ENOENT, 2).On(unix.ENOTDIR, 1)
		p.Call("hide "+name, unix.SYS_MOUNT, tmpfs, at, tmpfs, unix.MS_RDONLY)
	}
}

// guardNull lets an OCI runtime find this machine's null device at /dev/null, which it hides files with, where a step mounts
// something of its own at /dev or there. Runtimes before the fixes for CVE-2025-31133 take whatever is there, and hide
// nothing if nothing is.
func (b *bundle) guardNull(s *specs.Spec, p *plan) error {
	if len(s.Linux.MaskedPaths) == 0 || !p.replacesNull() {
		return nil
	}
	null, err := os.OpenFile("/dev/null", unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := checkNull(null); err != nil {
		return err
	}
	at, err := b.bindFile(null)
	if err == nil {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/null", Type: "bind", Source: at, Options: []string{"bind", "ro", "nosuid", "noexec"}})
	}
	return err
}
