package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

var stamp = time.Unix(1_700_000_000, 0)

// maker builds tars entry by entry; raw bytes can be put between them.
type maker struct {
	buf bytes.Buffer
}

func (m *maker) add(h tar.Header, body string) *maker {
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.ModTime.IsZero() {
		h.ModTime = stamp
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if body != "" {
		h.Size = int64(len(body))
	}
	if h.Format == tar.FormatUnknown && h.PAXRecords != nil {
		h.Format = tar.FormatPAX
	}
	tw := tar.NewWriter(&m.buf)
	if err := tw.WriteHeader(&h); err != nil {
		panic(fmt.Sprintf("%q: %v", h.Name, err))
	}
	if body != "" {
		if _, err := tw.Write([]byte(body)); err != nil {
			panic(err)
		}
		if err := tw.Flush(); err != nil {
			panic(err)
		}
	}
	return m
}

func (m *maker) file(name, body string) *maker {
	return m.add(tar.Header{Name: name}, body)
}

func (m *maker) dir(name string) *maker {
	return m.add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
}

func (m *maker) link(name, target string) *maker {
	return m.add(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}, "")
}

func (m *maker) hard(name, target string) *maker {
	return m.add(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}, "")
}

func (m *maker) dev(typ byte, name string, major, minor int64) *maker {
	return m.add(tar.Header{Name: name, Typeflag: typ, Devmajor: major, Devminor: minor, Mode: 0o600}, "")
}

func (m *maker) xattr(name, key, value string) *maker {
	return m.add(tar.Header{Name: name, PAXRecords: map[string]string{xattrRecord + key: value}}, "x")
}

// raw writes a USTAR header with any bytes in it; fields are offset -> bytes.
func (m *maker) raw(name string, typ byte, fields map[int]string) *maker {
	var b [tarBlock]byte
	copy(b[:], name)
	for off, s := range map[int]string{100: "0000644\x00", 108: "0000000\x00", 116: "0000000\x00", 124: "00000000000\x00", 136: "00000000000\x00", 257: "ustar\x0000"} {
		copy(b[off:], s)
	}
	b[156] = typ
	for off, s := range fields {
		copy(b[off:], s)
	}
	copy(b[148:], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	octal(b[148:155], sum)
	m.buf.Write(b[:])
	return m
}

func (m *maker) block(s string) *maker {
	b := make([]byte, (len(s)+tarBlock-1)/tarBlock*tarBlock)
	copy(b, s)
	m.buf.Write(b)
	return m
}

// end gives the tar with its end marker.
func (m *maker) end() []byte { return append(bytes.Clone(m.buf.Bytes()), make([]byte, 2*tarBlock)...) }

// tree describes a directory, one line for each path: type, mode, content or target, and owner if it is not root.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o", st.Mode&0o7777)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if s += " file"; len(b) <= 64 {
				s += " " + string(b)
			} else {
				s += fmt.Sprintf(" %d bytes", len(b))
			}
		case unix.S_IFDIR:
			if s += " dir"; opaqueAt(p) {
				s += " opaque"
			}
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			s = "-> " + target
		case unix.S_IFCHR:
			if s += fmt.Sprintf(" char %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)); isWhiteout(&st) {
				s = "whiteout"
			}
		case unix.S_IFBLK:
			s += fmt.Sprintf(" block %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFIFO:
			s += " fifo"
		}
		if st.Uid != 0 || st.Gid != 0 {
			s += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := tree(t, dir)
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if want[p] != got[p] {
			t.Errorf("%s: got %q, want %q", p, got[p], want[p])
		}
	}
	for p := range want {
		if _, ok := got[p]; !ok {
			t.Errorf("%s is missing, want %q", p, want[p])
		}
	}
}

// cage is a directory to unpack into, with canaries around it.
type cage struct {
	root, dir string
	before    map[string]string
}

func newCage(t *testing.T) *cage {
	t.Helper()
	c := &cage{root: t.TempDir()}
	c.dir = filepath.Join(c.root, "a", "out")
	must(t, os.MkdirAll(c.dir, 0o755))
	must(t, os.MkdirAll(filepath.Join(c.root, "canary.d"), 0o700))
	for _, p := range []string{"canary", "a/canary", "canary.d/canary"} {
		must(t, os.WriteFile(filepath.Join(c.root, p), []byte("alive"), 0o600))
		must(t, os.Chtimes(filepath.Join(c.root, p), stamp, stamp))
	}
	must(t, os.Chtimes(filepath.Join(c.root, "canary.d"), stamp, stamp))
	c.before = c.around(t)
	return c
}

// around describes all that is outside of the directory, times and link counts included.
func (c *cage) around(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(c.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == c.dir {
			return filepath.SkipDir
		}
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		content := ""
		if info.Mode().IsRegular() {
			b, _ := os.ReadFile(p)
			content = string(b)
		}
		out[p] = fmt.Sprint(info.Mode(), info.ModTime(), st.Uid, st.Gid, st.Nlink, content)
		return nil
	}))
	return out
}

func (c *cage) check(t *testing.T) {
	t.Helper()
	if now := c.around(t); !maps.Equal(now, c.before) {
		t.Errorf("something outside has changed:\n%v\nwas\n%v", now, c.before)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind diag.Kind, word string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s %q", kind, word)
	}
	if diag.KindOf(err) != kind || !strings.Contains(err.Error(), word) {
		t.Errorf("got %s: %v; want %s with %q", diag.KindOf(err), err, kind, word)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func apply(t *testing.T, dir string, data []byte) *Applied {
	t.Helper()
	a, err := Apply(context.Background(), bytes.NewReader(data), dir, ApplyOptions{Unprivileged: os.Geteuid() != 0})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mtimeOf(t *testing.T, p string) time.Time {
	t.Helper()
	info, err := os.Lstat(p)
	must(t, err)
	return info.ModTime()
}
