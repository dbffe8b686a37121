package export

import (
	"archive/tar"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// listing shows a directory as "path mode [target]".
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := rel + " " + fi.Mode().String()
		if e.Type() == fs.ModeSymlink {
			target, _ := os.Readlink(p)
			line = rel + " -> " + target
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// overlaid is a set whose upper layer hides and changes files of the lower one.
func overlaid(t *testing.T, s *store.Store, p graph.Platform) Image {
	t.Helper()
	a := addLayer(t, s, map[string]string{"etc/gone": "x", "etc/kept": "one", "dir/old": "x", "bin/tool": "#!/bin/sh\n", "link": "-> etc/kept"})
	b := addLayer(t, s, map[string]string{"etc/new": "two", "dir/fresh": "y"})
	upper := s.LayerDir(b)
	for _, err := range []error{
		unix.Mknod(filepath.Join(upper, "etc/gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(upper, "dir"), "trusted.overlay.opaque", []byte("y"), 0),
		os.Chmod(filepath.Join(s.LayerDir(a), "bin/tool"), 0o755|fs.ModeSetuid),
		os.Link(filepath.Join(s.LayerDir(a), "bin/tool"), filepath.Join(s.LayerDir(a), "bin/alias")),
		os.Chmod(filepath.Join(upper, "dir"), 0o555),
		os.Chtimes(filepath.Join(upper, "dir"), time.Unix(1_600_000_000, 0), time.Unix(1_600_000_000, 0)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	st := tree.NewStack(s, []store.LayerID{a, b})
	t.Cleanup(st.Release)
	return Image{Platform: p, Tree: st}
}

var overlaidFiles = []string{
	"bin drwxr-xr-x", "bin/alias urwxr-xr-x", "bin/tool urwxr-xr-x", "dir dr-xr-xr-x", "dir/fresh -rw-r--r--",
	"etc drwxr-xr-x", "etc/kept -rw-r--r--", "etc/new -rw-r--r--", "link -> etc/kept",
}

// withoutSetuid is what a local output has of overlaidFiles.
func withoutSetuid() []string {
	out := slices.Clone(overlaidFiles)
	for i := range out {
		out[i] = strings.Replace(out[i], " urwx", " -rwx", 1)
	}
	return out
}

// giveTo gives a directory and what is in it to a user.
func giveTo(dir string, uid, gid int) error {
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, uid, gid)
	})
}

func TestLocal(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	set := &Set{Images: []Image{overlaid(t, s, amd64)}}
	dir := t.TempDir()
	outside := t.TempDir()
	// What is in the way is replaced, and nothing is written through a symlink.
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(dir, "etc")), os.MkdirAll(filepath.Join(dir, "link/sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644), giveTo(dir, 1234, 1235),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	export(t, testEnv(s, &client{dir: dir}), set, output("local"))
	want := slices.Sorted(slices.Values(append(withoutSetuid(), "mine -rw-r--r--")))
	if got := slices.Sorted(slices.Values(listing(t, dir))); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if left := listing(t, outside); len(left) > 0 {
		t.Errorf("written through a symlink: %q", left)
	}
	var st, al unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "bin/tool"), &st); err != nil || st.Uid != 1234 || st.Gid != 1235 {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	if err := unix.Stat(filepath.Join(dir, "bin/alias"), &al); err != nil || al.Ino != st.Ino {
		t.Error("the hard link was lost")
	}
	if fi, _ := os.Stat(filepath.Join(dir, "dir")); fi.ModTime().Unix() != 1_600_000_000 {
		t.Errorf("time of a directory: %v", fi.ModTime())
	}
	if fi, _ := os.Stat(filepath.Join(dir, "etc/kept")); fi.ModTime().Unix() != 1_750_000_000 {
		t.Errorf("time of a file: %v", fi.ModTime())
	}
	export(t, testEnv(s, &client{dir: dir}), set, output("local", "mode=delete"))
	if got := listing(t, dir); !slices.Equal(got, withoutSetuid()) {
		t.Errorf("mode=delete: %q", got)
	}
	if left := listing(t, outside); len(left) > 0 {
		t.Error("deleted or wrote outside")
	}
}

// TestSharedFilesAreExportedApart: layers that share a file have no hard link between them, and neither has what is made of them.
func TestSharedFilesAreExportedApart(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	a, b := addLayer(t, s, map[string]string{"x": "text"}), addLayer(t, s, map[string]string{"z": "text"})
	if err := os.Link(filepath.Join(s.LayerDir(a), "x"), filepath.Join(s.LayerDir(b), "y")); err != nil {
		t.Fatal(err)
	}
	st := tree.NewStack(s, []store.LayerID{a, b})
	t.Cleanup(st.Release)
	set := &Set{Images: []Image{{Platform: amd64, Tree: st}}}
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local"))
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "y")); string(got) != "text" {
		t.Errorf("a change of x changed y to %q", got)
	}
	c := &client{}
	export(t, testEnv(s, c), set, output("tar"))
	for r := tar.NewReader(&c.buf); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil || h.Typeflag == tar.TypeLink {
			t.Fatalf("%s is a link to %s, %v", h.Name, h.Linkname, err)
		}
	}
}

func TestLocalPlatformsAndSource(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	set := &Set{Images: []Image{overlaid(t, s, amd64), overlaid(t, s, graph.Platform{OS: "linux", Architecture: "arm", Variant: "v7"})}}
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local", "src=/etc", "mode=delete"))
	want := []string{
		"linux_amd64 drwxr-xr-x", "linux_amd64/kept -rw-r--r--", "linux_amd64/new -rw-r--r--",
		"linux_arm_v7 drwxr-xr-x", "linux_arm_v7/kept -rw-r--r--", "linux_arm_v7/new -rw-r--r--",
	}
	if got := listing(t, dir); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	dir = t.TempDir()
	one := &Set{Images: set.Images[:1], Multi: true}
	export(t, testEnv(s, &client{dir: dir}), one, output("local", "src=etc", "platform-split=false"))
	if got := listing(t, dir); !slices.Equal(got, []string{"kept -rw-r--r--", "new -rw-r--r--"}) {
		t.Errorf("%q", got)
	}
	for _, typ := range []string{"local", "tar"} {
		x, err := New(output(typ, "src=etc", "platform-split=false"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Run(t.Context(), testEnv(s, &client{dir: t.TempDir()}), set, []Exporter{x})
		if err == nil || !strings.Contains(err.Error(), "cannot overwrite kept from linux/amd64 with linux/arm/v7") {
			t.Errorf("%s: %v", typ, err)
		}
	}
	x, err := New(output("local", "src=/nosuch"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), testEnv(s, &client{dir: dir}), set, []Exporter{x}); diag.KindOf(err) != diag.NotFound {
		t.Errorf("%v", err)
	}
}

func TestLocalMany(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	files := map[string]string{}
	for i := range 3000 {
		files[filepath.Join(strings.Repeat("d/", i%7), sprint(i%50), sprint(i))] = sprint(i)
	}
	st := tree.NewStack(s, []store.LayerID{addLayer(t, s, files)})
	defer st.Release()
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), &Set{Images: []Image{{Platform: amd64, Tree: st}}}, output("local"))
	for name, want := range files {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Fatalf("%s: %q, %v", name, b, err)
		}
	}
}

func TestTar(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	set := &Set{Images: []Image{overlaid(t, s, amd64)}}
	c := &client{}
	export(t, testEnv(s, c), set, output("tar", "source-date-epoch=1700000000"))
	got := map[string]string{}
	for tr := tar.NewReader(&c.buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(h.Typeflag) + h.Linkname + readAll(t, tr)
		if h.ModTime.Unix() > 1_700_000_000 {
			t.Errorf("%s: %v", h.Name, h.ModTime)
		}
	}
	want := map[string]string{
		"bin/": "5", "bin/alias": "0#!/bin/sh\n", "bin/tool": "1bin/alias", "dir/": "5", "dir/fresh": "0y", "etc/": "5",
		"etc/kept": "0one", "etc/new": "0two", "link": "2etc/kept",
	}
	if !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
	c = &client{}
	set.Multi = true
	export(t, testEnv(s, c), set, output("tar", "src=etc"))
	var names []string
	for tr := tar.NewReader(&c.buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if !slices.Equal(names, []string{"linux_amd64/", "linux_amd64/kept", "linux_amd64/new"}) {
		t.Errorf("%q", names)
	}
}

// A client's directory can be written as files, with its filters, but is no image.
func TestClientDirectory(t *testing.T) {
	s := openStore(t)
	ctx := t.TempDir()
	for _, n := range []string{"a.go", "b.txt"} {
		if err := os.WriteFile(filepath.Join(ctx, n), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	local := tree.NewLocal(nil, session.Dir{Path: ctx}, &graph.Local{Name: "context", Exclude: []string{"*.txt"}})
	defer local.Release()
	set := &Set{Images: []Image{{Platform: amd64, Tree: local}}}
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local"))
	if got := listing(t, dir); !slices.Equal(got, []string{"a.go -rw-r--r--"}) {
		t.Errorf("%q", got)
	}
	x, err := New(output("image", "name=a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), testEnv(s, nil), set, []Exporter{x}); diag.KindOf(err) != diag.Unsupported {
		t.Errorf("%v", err)
	}
}
