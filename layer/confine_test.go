package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/restrict"
)

// faults are what a parser would do that has lost its way: each writes or reads outside of the layer's directory, which root is open.
func faults(outside string) map[string]func(root int) error {
	open := func(at int, path string, flags int) error {
		fd, err := unix.Openat(at, path, flags|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	return map[string]func(root int) error{
		"create by ..":      func(root int) error { return open(root, "../created", unix.O_CREAT|unix.O_WRONLY) },
		"create by path":    func(int) error { return open(unix.AT_FDCWD, outside+"/created", unix.O_CREAT|unix.O_WRONLY) },
		"overwrite":         func(int) error { return open(unix.AT_FDCWD, outside+"/canary", unix.O_WRONLY|unix.O_TRUNC) },
		"read":              func(int) error { return open(unix.AT_FDCWD, outside+"/canary", unix.O_RDONLY) },
		"remove":            func(int) error { return unix.Unlinkat(unix.AT_FDCWD, outside+"/canary", 0) },
		"directory":         func(root int) error { return unix.Mkdirat(root, "../made", 0o755) },
		"symlink":           func(root int) error { return unix.Symlinkat("/", root, "../made") },
		"device":            func(root int) error { return unix.Mknodat(root, "../made", unix.S_IFCHR, 0) },
		"link from outside": func(root int) error { return unix.Linkat(unix.AT_FDCWD, outside+"/canary", root, "stolen", 0) },
		"link to outside":   func(root int) error { return unix.Linkat(root, "inside", root, "../made", 0) },
		"rename":            func(root int) error { return unix.Renameat(root, "inside", root, "../made") },
		"execute":           func(int) error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"socket": func(int) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
	}
}

// A parser whose checks have failed reaches nothing outside of the layer's directory: the kernel refuses it. The faults are put where
// the parser makes the directory of an entry, in Apply and in Finish.
func TestFaultOfTheParserStaysInTheLayer(t *testing.T) {
	if !restrict.Confines() {
		t.Skip("no landlock")
	}
	m := &maker{}
	m.file("implied/file", "x")
	top := t.TempDir()
	canary := filepath.Join(top, "canary")
	if err := os.WriteFile(canary, []byte("canary"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, fault := range faults(top) {
		for _, where := range []string{"Apply", "Finish"} {
			dir := filepath.Join(top, "layer")
			if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "inside"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			var got error
			reached := false
			strike := func(root int) error {
				reached = true
				got = fault(root)
				return got
			}
			var err error
			if where == "Apply" {
				var a *applier
				if a, err = newApplier(t.Context(), bytes.NewReader(m.end()), dir, ApplyOptions{Confined: true}); err != nil {
					t.Fatal(err)
				}
				a.t.made = func(string) error { return strike(a.t.root.fd) }
				err = a.t.confined(nil, a.run)
			} else {
				var to *target
				if to, err = openTarget(dir); err != nil {
					t.Fatal(err)
				}
				f := newFinisher(t.Context(), to, &Applied{ImpliedDirs: []string{"."}}, []string{t.TempDir()})
				err = to.confined(f.lower, func() error { return errors.Join(f.run(false), strike(to.root.fd)) })
			}
			if !reached {
				t.Fatalf("%s: the fault was not reached: %v", where, err)
			}
			if err == nil || !errors.Is(got, unix.EACCES) && !errors.Is(got, unix.EPERM) && !errors.Is(got, unix.EXDEV) {
				t.Errorf("%s: %s was not refused by the kernel: %v", where, name, got)
			}
		}
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "canary" {
		t.Errorf("the canary: %q %v", b, err)
	}
	left, err := os.ReadDir(top)
	if err != nil || len(left) != 2 {
		t.Errorf("outside of the layer there is now %v %v", left, err)
	}
}

// opening is a stream whose Read opens a file: downloads and stores do.
type opening struct {
	io.Reader
	file string
}

func (o opening) Read(p []byte) (int, error) {
	if _, err := os.ReadFile(o.file); err != nil {
		return 0, err
	}
	return o.Reader.Read(p)
}

// What gives Apply its bytes is not confined.
func TestSourceOfApplyKeepsItsRights(t *testing.T) {
	m := &maker{}
	m.file("file", "x")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Apply(context.Background(), opening{bytes.NewReader(m.end()), secret}, dir, ApplyOptions{Confined: true}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "x" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	plain, _, err := Decompress(opening{bytes.NewReader(m.end()), secret})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := Apply(context.Background(), NewDigestReader(plain), t.TempDir(), ApplyOptions{Confined: true}); err != nil {
		t.Error(err)
	}
}

// Attributes, owners, modes and times of a link's entry are the link's: the file of the machine that it names keeps its own, also if the
// entry comes twice or is a hard link to the link.
func TestAttributesOfALinkToAFileOfTheMachine(t *testing.T) {
	needRoot(t)
	canary := filepath.Join(t.TempDir(), "canary")
	must(t, os.WriteFile(canary, []byte("x"), 0o600))
	state := func() string {
		var st unix.Stat_t
		must(t, unix.Stat(canary, &st))
		return fmt.Sprintf("%o %d %d %d %v", st.Mode, st.Uid, st.Gid, st.Mtim.Nano(), xattrsOf(t, canary))
	}
	before := state()
	capability := "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	records := map[string]string{xattrRecord + "security.capability": capability, xattrRecord + "user.x": "y"}
	link := tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: canary, Mode: 0o4777, Uid: 1000, Gid: 1000, PAXRecords: records}
	for name, m := range map[string]*maker{
		"link":        (&maker{}).add(link, ""),
		"twice":       (&maker{}).add(link, "").add(link, ""),
		"trusted":     (&maker{}).add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: canary, PAXRecords: map[string]string{xattrRecord + "trusted.x": "y"}}, ""),
		"hard link":   (&maker{}).link("l", canary).add(tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l", Mode: 0o4777, Uid: 1000, Gid: 1000, PAXRecords: records}, ""),
		"as a parent": (&maker{}).link("l", filepath.Dir(canary)).add(tar.Header{Name: "l/canary", Mode: 0o4777, Uid: 1000, Gid: 1000, PAXRecords: map[string]string{xattrRecord + "user.x": "y"}}, ""),
	} {
		for _, confined := range []bool{false, true} {
			_, err := Apply(t.Context(), bytes.NewReader(m.end()), t.TempDir(), ApplyOptions{Confined: confined})
			if after := state(); after != before {
				t.Fatalf("%s: the file of the machine was %s, and is %s (%v)", name, before, after, err)
			}
		}
	}
}
