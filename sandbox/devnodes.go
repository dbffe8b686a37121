package sandbox

import (
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// devNodes and devLinks are what every container has in /dev.
// https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices
var (
	devNodes = []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}
	devLinks = [][2]string{{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}}
)

// devices fills the engine's /dev, whatever a step has mounted over it. The umask must be 0.
func (m *mounter) devices(more []specs.LinuxDevice) error {
	fd := int(m.dev.Fd())
	for _, d := range devNodes {
		if err := makeDevice(fd, d.name, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor)); err != nil {
			return err
		}
	}
	for _, d := range more {
		if err := m.device(d); err != nil {
			return err
		}
	}
	links := devLinks
	if _, err := os.Lstat("/proc/kcore"); err == nil {
		links = append(links[:len(links):len(links)], [2]string{"/proc/kcore", "core"})
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], fd, l[1]); err != nil && err != unix.EEXIST {
			return &os.LinkError{Op: "symlink", Old: l[0], New: l[1], Err: err}
		}
	}
	return nil
}

// device makes a node that a step asks for, below /dev.
func (m *mounter) device(d specs.LinuxDevice) error {
	parent, err := m.target(path.Dir(cleanPath(d.Path)), false)
	if err != nil {
		return err
	}
	defer parent.Close()
	mode, name := uint32(unix.S_IFCHR), path.Base(d.Path)
	if d.Type == "b" {
		mode = unix.S_IFBLK
	}
	perm := os.FileMode(0o666)
	if d.FileMode != nil {
		perm = *d.FileMode & 0o7777
	}
	if err := makeDevice(int(parent.Fd()), name, mode|uint32(perm), unix.Mkdev(uint32(d.Major), uint32(d.Minor))); err != nil {
		return err
	}
	uid, gid := 0, 0
	if d.UID != nil {
		uid = int(*d.UID)
	}
	if d.GID != nil {
		gid = int(*d.GID)
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	return unix.Fchownat(int(parent.Fd()), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func makeDevice(dir int, name string, mode uint32, dev uint64) error {
	if err := unix.Mknodat(dir, name, mode, int(dev)); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return nil
}

// candidates are the files of the container that a command's name can stand for. It is for a thread that has the
// container's root.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	search := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var out []string
	for dir := range strings.SplitSeq(search, ":") {
		p := path.Join(dir, name)
		if !path.IsAbs(p) {
			continue // the working directory is no place to look in
		}
		if st, err := os.Stat(p); err == nil && !st.IsDir() {
			out = append(out, p)
		}
	}
	return out
}
