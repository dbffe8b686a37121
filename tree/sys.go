package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/session"
)

// The attributes of overlayfs that a layer carries.
const (
	opaqueAttr    = "trusted.overlay.opaque"
	overlayAttrs  = "trusted.overlay."
	capabilityKey = "security.capability"
)

// openIn opens rel (no leading slash, "" is the directory itself) below the directory root. No component may be a
// symlink, so that a tree that changes while it is read leads nowhere else. FIFOs and devices do not block.
func openIn(root int, rel string, flags int) (int, error) {
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NONBLOCK
	}
	for {
		fd, err := unix.Openat2(root, rel, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// openRoot opens a directory that is named by the store or the client; the way to it may hold symlinks.
func openRoot(dir string) (int, error) {
	for {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		return fd, nil
	}
}

// dirent is a name of a directory. typ is the type bits of the mode (unix.S_IFMT), 0 if the file system does not say.
type dirent struct {
	name string
	typ  uint32
}

// direntHeader is the size of the fixed part of linux_dirent64: ino, off, reclen, type. See getdents64(2).
const direntHeader = 19

// readNames lists the open directory in the order of the file system.
func readNames(fd int, out []dirent) ([]dirent, error) {
	var buf [32 << 10]byte
	for {
		n, err := unix.Getdents(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return out, err
		}
		for b := buf[:n]; len(b) > direntHeader; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			if reclen <= direntHeader || reclen > len(b) {
				return out, errors.New("malformed directory entry")
			}
			name := b[direntHeader:reclen]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				out = append(out, dirent{name: s, typ: uint32(b[18]) << 12})
			}
			b = b[reclen:]
		}
	}
}

func readLink(fd int, name string, size int64) (string, error) {
	for n := max(size, 127) + 1; ; n *= 2 {
		buf := make([]byte, n)
		k, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", err
		}
		if int64(k) < n {
			return string(buf[:k]), nil
		}
		if n > 1<<20 {
			return "", unix.ENAMETOOLONG
		}
	}
}

func isWhiteout(mode uint32, rdev uint64) bool { return mode&unix.S_IFMT == unix.S_IFCHR && rdev == 0 }

func isType(mode, typ uint32) bool { return mode&unix.S_IFMT == typ }

func nanos(t unix.Timespec) int64 { return t.Sec*1e9 + t.Nsec }

func timespec(ns int64) unix.Timespec {
	sec := ns / 1e9
	if ns%1e9 < 0 {
		sec--
	}
	return unix.Timespec{Sec: sec, Nsec: ns - sec*1e9}
}

// setTimes sets both times of name in the open directory dir, without following a symlink.
func setTimes(dir int, name string, ns int64) error {
	ts := timespec(ns)
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func missing(err error) bool { return err == unix.ENOENT || err == unix.ENOTDIR }

// isOpaque reports whether the directory of a layer hides those below it. host must not lead through symlinks.
func isOpaque(host string) (bool, error) {
	var b [1]byte
	n, err := unix.Lgetxattr(host, opaqueAttr, b[:])
	switch err {
	case nil:
		return n == 1 && b[0] == 'y', nil
	case unix.ENODATA, unix.ENOTSUP, unix.EPERM, unix.ERANGE, unix.ENOENT:
		return false, nil
	}
	return false, &os.PathError{Op: "lgetxattr", Path: host, Err: err}
}

// fdPath names an open file for the calls that take only paths.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func joinRel(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// listAttrs returns the extended attributes of the file of a layer at host, without those of overlayfs itself.
func listAttrs(host string) []string {
	var buf [1024]byte
	b := buf[:]
	n, err := unix.Llistxattr(host, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10)
		n, err = unix.Llistxattr(host, b)
	}
	if err != nil || n == 0 {
		return nil
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if name != "" && !strings.HasPrefix(name, overlayAttrs) {
			out = append(out, name)
		}
	}
	return out
}

// OutputAttrs returns the extended attributes of a file that outputs for people hold: its capability, and those of users. The file
// is named in a directory that does not change.
func OutputAttrs(host string) map[string]string {
	var out map[string]string
	for _, name := range counted(host) {
		if v := attr(host, name); v != nil {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = string(v)
		}
	}
	return out
}

// counted lists the extended attributes of a file of a layer that make it another file: its capability, and those of users, sorted.
func counted(host string) []string {
	names := slices.DeleteFunc(listAttrs(host), func(n string) bool {
		return n != capabilityKey && !strings.HasPrefix(n, "user.")
	})
	slices.Sort(names)
	return names
}

// eachClientAttr calls f for the attributes of an open file that count, sorted by name.
func eachClientAttr(fd int, f func(name string, value []byte)) {
	var buf [1024]byte
	b := buf[:]
	n, err := unix.Flistxattr(fd, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10)
		n, err = unix.Flistxattr(fd, b)
	}
	if err != nil || n == 0 {
		return
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if !session.HasAttr(name) {
			continue
		}
		v := make([]byte, 64<<10) // the kernel's limit of a value
		if n, err := unix.Fgetxattr(fd, name, v); err == nil {
			f(name, v[:n])
		}
	}
}

// attrsOf returns the digest of the attributes of a client's open file that count, nil if it has none.
func attrsOf(fd int) *[32]byte {
	var h *contentHash
	eachClientAttr(fd, func(name string, value []byte) {
		if h == nil {
			h = newContentHash()
		}
		h.str(name)
		h.str(string(value))
	})
	if h == nil {
		return nil
	}
	return (*[32]byte)(h.w.Sum(nil))
}

// copyClientAttrs copies the attributes that count. A file system that cannot have one of them loses it, as with BuildKit's copies.
func copyClientAttrs(from, to int) {
	eachClientAttr(from, func(name string, value []byte) { _ = unix.Fsetxattr(to, name, value, 0) })
}

// attr returns one extended attribute, nil if the file has none of that name.
func attr(host, name string) []byte {
	var buf [256]byte
	b := buf[:]
	n, err := unix.Lgetxattr(host, name, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10)
		n, err = unix.Lgetxattr(host, name, b)
	}
	if err != nil {
		return nil
	}
	return bytes.Clone(b[:n])
}

// copyAttrs copies the extended attributes. A file system or a user that cannot have one of them loses it, as with
// BuildKit's copies.
func copyAttrs(from, to string) {
	for _, name := range listAttrs(from) {
		if v := attr(from, name); v != nil {
			_ = unix.Lsetxattr(to, name, v, 0)
		}
	}
}
