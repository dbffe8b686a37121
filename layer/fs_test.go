package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

func indexOf(t *testing.T, data []byte) []*Entry {
	t.Helper()
	entries, err := Index(context.Background(), bytes.NewReader(data), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	streamed, err := Index(context.Background(), struct{ io.Reader }{bytes.NewReader(data)}, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := show(t, entries), show(t, streamed); a != b {
		t.Fatalf("a stream gives\n%s\na file\n%s", b, a)
	}
	return entries
}

// show is a line for each entry, contents included.
func show(t *testing.T, entries []*Entry) string {
	t.Helper()
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s %c %o %d:%d %d", e.Path, e.Type, e.Mode, e.UID, e.GID, e.ModTime.Unix())
		if e.Link != "" {
			fmt.Fprintf(&b, " -> %s", e.Link)
		}
		for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
			fmt.Fprintf(&b, " %s=%s", k, e.Xattrs[k])
		}
		if e.Size > 0 {
			r, err := e.Open()
			must(t, err)
			data, err := io.ReadAll(r)
			must(t, err)
			must(t, r.Close())
			fmt.Fprintf(&b, " %q", data)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func merged(t *testing.T, layers ...[]*Entry) *FS {
	t.Helper()
	return stacked(t, NewFS(), layers...)
}

func stacked(t *testing.T, fs *FS, layers ...[]*Entry) *FS {
	t.Helper()
	for _, l := range layers {
		must(t, fs.Add(l))
	}
	return fs
}

func collect(t *testing.T, fs *FS) []*Entry {
	t.Helper()
	out, err := Collect(fs.Entries())
	must(t, err)
	return out
}

func paths(entries []*Entry) string {
	var s []string
	for _, e := range entries {
		s = append(s, e.Path)
	}
	return strings.Join(s, " ")
}

func TestMergedFileSystem(t *testing.T) {
	bottom := (&maker{}).dir("etc").file("etc/a", "1").file("etc/b", "2").dir("usr").dir("usr/lib").link("lib", "usr/lib").
		file("usr/lib/x", "x").hard("usr/lib/y", "usr/lib/x").dir("gone").file("gone/f", "f").end()
	top := (&maker{}).file("etc/.wh.a", "").file("lib/z", "z").file("gone/.wh..wh..opq", "").file("gone/new", "n").file("usr/lib/x", "other").end()
	fs := merged(t, indexOf(t, bottom), indexOf(t, top))
	got := collect(t, fs)
	if p := paths(got); p != "etc etc/b gone gone/new lib usr usr/lib usr/lib/x usr/lib/y usr/lib/z" {
		t.Errorf("got %s", p)
	}
	for name, want := range map[string]string{"lib/x": "other", "usr/lib/y": "x", "lib/z": "z", "/etc/b": "2"} {
		b, err := fs.ReadFile(name, 100)
		if string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, ok := fs.Lookup("etc/a"); ok {
		t.Error("the whiteout of etc/a had no effect")
	}
	_, err := fs.ReadFile("etc/a", 100)
	wantKind(t, err, diag.NotFound, "etc/a")
	_, err = fs.ReadFile("etc/b", 0)
	wantKind(t, err, diag.Exhausted, "limit")
	if names := fs.ReadDir("lib"); fmt.Sprint(names) != "[x y z]" {
		t.Errorf("lib holds %v", names)
	}
}

// A later name of a file becomes the file if the first is replaced; hard links lead across layers.
func TestMergedHardLinks(t *testing.T) {
	a := (&maker{}).file("a", "one").hard("b", "a").hard("c", "b").end()
	b := (&maker{}).file("a", "two").hard("d", "c").end()
	got := show(t, collect(t, merged(t, indexOf(t, a), indexOf(t, b))))
	want := "a 0 644 0:0 1700000000 \"two\"\nb 0 644 0:0 1700000000 \"one\"\nc 1 644 0:0 1700000000 -> b\nd 1 644 0:0 1700000000 -> b\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	err := NewFS().Add(indexOf(t, (&maker{}).hard("x", "nothing").end()))
	wantKind(t, err, diag.Invalid, "hard link")
}

func TestImpossibleStack(t *testing.T) {
	fs := merged(t, indexOf(t, (&maker{}).file("a", "x").end()))
	wantKind(t, fs.Add(indexOf(t, (&maker{}).file("a/b", "y").end())), diag.Invalid, "not a directory")
	loop := merged(t, indexOf(t, (&maker{}).link("a", "b").link("b", "a").end()))
	wantKind(t, loop.Add(indexOf(t, (&maker{}).file("a/b", "y").end())), diag.Invalid, "symlinks")
}

func TestIndexRefuses(t *testing.T) {
	for name, data := range map[string][]byte{
		"leads out": (&maker{}).file("../x", "").end(),
		"valid tar": append((&maker{}).file("a", "").end()[:512], bytes.Repeat([]byte{7}, 1024)...),
		"0:0":       (&maker{}).dev(tar.TypeChar, "x", 0, 0).end(),
		"whiteout":  (&maker{}).file(".wh.a/b", "").end(),
	} {
		_, err := Index(context.Background(), bytes.NewReader(data), bytes.NewReader(data))
		wantKind(t, err, diag.Invalid, name)
	}
}

// randomLayer makes a layer of up to 12 entries in a small name space, markers first: so Apply may remove at once.
func randomLayer(r *rand.Rand, below *FS) []byte {
	m := &maker{}
	name := func() string {
		parts := make([]string, 1+r.IntN(3))
		for i := range parts {
			parts[i] = string("abc"[r.IntN(3)])
		}
		return strings.Join(parts, "/")
	}
	for range r.IntN(4) {
		dir, base := split(name())
		if r.IntN(4) == 0 {
			m.file(join(dir, base)+"/"+opaqueMarker, "")
		} else {
			m.file(join(dir, whiteoutPrefix+base), "")
		}
	}
	for range r.IntN(10) {
		p := name()
		switch r.IntN(6) {
		case 0, 1:
			m.file(p, fmt.Sprint(r.IntN(1000)))
		case 2:
			m.dir(p)
		case 3:
			m.link(p, []string{"a", "../b", "/c", "b/a", "x"}[r.IntN(5)])
		case 4:
			var files []string
			for e := range below.Entries() {
				if e.Type == File {
					files = append(files, e.Path)
				}
			}
			if len(files) > 0 {
				m.hard(p, files[r.IntN(len(files))])
			}
		case 5:
			m.add(tar.Header{Name: p, Mode: 0o600, Uid: 0, PAXRecords: map[string]string{xattrRecord + "user.x": "1"}}, "")
		}
	}
	return m.end()
}

// Random stacks look the same in memory as unpacked one after the other. What is impossible for one is so for the other, as
// far as both see it.
func TestMergedAgainstUnpacked(t *testing.T) {
	compared := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		fs := NewFS()
		var stack [][]*Entry
		ok := true
		for range 3 {
			data := randomLayer(r, fs)
			_, err := Apply(context.Background(), bytes.NewReader(data), dir, ApplyOptions{Form: Remove, Unprivileged: os.Geteuid() != 0})
			entries := indexOf(t, data)
			if merr := fs.Add(entries); err != nil || merr != nil {
				ok = false
				break
			}
			stack = append(stack, entries)
		}
		if !ok {
			continue
		}
		compared++
		w, err := NewWalker(dir, true)
		must(t, err)
		unpacked, err := Collect(w.Entries())
		must(t, err)
		shape := func(list []*Entry) string {
			s := show(t, list)
			var out []string
			for line := range strings.Lines(s) { // times of directories are those of their last change when unpacked in steps
				f := strings.Fields(line)
				f[4] = ""
				if f[1] == "5" && os.Geteuid() != 0 {
					f[2] = ""
				}
				if f[1] == "2" {
					f[2] = ""
				}
				out = append(out, strings.Join(f, " "))
			}
			return strings.Join(out, "\n")
		}
		got, want := shape(collect(t, fs)), shape(unpacked)
		if os.Geteuid() != 0 {
			continue
		}
		if got != want {
			t.Fatalf("seed %d: in memory\n%s\nunpacked\n%s\nlayers\n%s\n%s\n%s", seed, got, want, show(t, stack[0]), show(t, stack[1]), show(t, stack[2]))
		}
		must(t, w.Close())
		// The upper two as one layer do the same as apart.
		upper := collect(t, stacked(t, NewUpper(merged(t, stack[0])), stack[1], stack[2]))
		one := NewFS()
		must(t, one.Add(stack[0]))
		if err := one.Add(upper); err != nil {
			t.Fatalf("seed %d: %v\n%s\n%s\n%s\nupper\n%s", seed, err, show(t, stack[0]), show(t, stack[1]), show(t, stack[2]), show(t, upper))
		}
		unlink := func(list []*Entry) []*Entry { // a link to a file below the merged layers becomes a copy of it
			out := slices.Clone(list)
			at := map[string]*Entry{}
			for i, e := range out {
				if at[e.Path] = e; e.Type == HardLink {
					c := *at[e.Link]
					c.Path, out[i] = e.Path, &c
				}
			}
			return out
		}
		got = shape(unlink(collect(t, fs)))
		if a := shape(unlink(collect(t, one))); a != got {
			t.Fatalf("seed %d: merged above\n%s\napart\n%s\nupper\n%s\nlayers\n%s\n%s\n%s", seed, a, got, show(t, upper), show(t, stack[0]), show(t, stack[1]), show(t, stack[2]))
		}
	}
	if compared < 40 {
		t.Errorf("only %d stacks were possible", compared)
	}
}

func TestVirtual(t *testing.T) {
	data := (&maker{}).dir("d").file("d/f", "hello").xattr("d/x", "user.k", "v").end()
	entries := collect(t, merged(t, indexOf(t, data)))
	var b bytes.Buffer
	v, err := NewVirtual(t.Context(), entries, TarOptions{AllXattrs: true}, &b)
	must(t, err)
	if sum := sha256.Sum256(b.Bytes()); v.DiffID != digest.NewDigestFromBytes(digest.SHA256, sum[:]) || v.Size() != int64(b.Len()) {
		t.Errorf("%s, %d bytes, for %x, %d bytes", v.DiffID, v.Size(), sum, b.Len())
	}
	r := v.Open(t.Context())
	again, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	if !bytes.Equal(again, b.Bytes()) {
		t.Error("the tar is not the same when it is made again")
	}
	if got := indexOf(t, again); show(t, got) != show(t, entries) {
		t.Errorf("attributes are lost:\n%s", show(t, got))
	}
	changed := *entries[1]
	changed.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("HELLO")), nil }
	v.Entries = []*Entry{entries[0], &changed, entries[2]}
	wantKind(t, v.Write(t.Context(), io.Discard), diag.Conflict, "changed meanwhile")
	r = v.Open(t.Context()) // closing early ends the making
	must(t, r.Close())
}

// Sparse files come out whole when they are read again by offset.
func TestIndexSparse(t *testing.T) {
	if _, err := os.Stat("/bin/tar"); err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	f, err := os.Create(dir + "/hole")
	must(t, err)
	must(t, f.Truncate(1<<20))
	_, err = f.WriteAt([]byte("middle"), 500_000)
	must(t, err)
	must(t, f.Close())
	must(t, os.WriteFile(dir+"/next", []byte("next"), 0o644))
	for _, format := range []string{"gnu", "posix"} {
		data := runTar(t, dir, "--sparse", "--format="+format, "-cf", "-", "hole", "next")
		if len(data) > 1<<18 {
			t.Skip("no holes here")
		}
		entries := indexOf(t, data)
		fs := merged(t, entries)
		b, err := fs.ReadFile("hole", 2<<20)
		must(t, err)
		if len(b) != 1<<20 || string(b[500_000:500_006]) != "middle" {
			t.Errorf("%s: %d bytes", format, len(b))
		}
		if b, err := fs.ReadFile("next", 10); string(b) != "next" || err != nil {
			t.Errorf("%s: next is %q, %v", format, b, err)
		}
	}
}

func TestFromPath(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"bin", "var/lib/app", "cache/deep", ".git"} {
		must(t, os.MkdirAll(dir+"/"+p, 0o700))
	}
	for p, mode := range map[string]os.FileMode{"bin/run": 0o700, "var/lib/app/db": 0o600, "cache/deep/x": 0o644, ".git/HEAD": 0o644, "a.o": 0o644, "keep.txt": 0o644} {
		must(t, os.WriteFile(dir+"/"+p, []byte(p), mode))
		must(t, os.Chmod(dir+"/"+p, mode))
	}
	must(t, os.Link(dir+"/a.o", dir+"/z-link"))
	must(t, os.Link(dir+"/a.o", dir+"/z-more"))
	rules, err := ParseRules("meta", []byte("# comment\nbin/* mode=0755 mtime=5\nvar/lib/app/** uid=1000 gid=1001 # inline\nkeep.txt exclude\n"))
	must(t, err)
	opt := CreateOptions{Prefix: "opt/x", Exclude: []string{"*.o", "cache", "**/.git"}, Rules: rules, Owner: Owner{7, 8}}
	src, err := FromPath(dir, opt)
	must(t, err)
	defer src.Close()
	if p := paths(src.Entries); p != "opt opt/x opt/x/bin opt/x/bin/run opt/x/var opt/x/var/lib opt/x/var/lib/app opt/x/var/lib/app/db opt/x/z-link opt/x/z-more" {
		t.Errorf("got %s", p)
	}
	by := map[string]*Entry{}
	for _, e := range src.Entries {
		by[strings.TrimPrefix(e.Path, "opt/x/")] = e
	}
	if e := by["opt"]; e.Mode != 0o755 || e.UID != 0 {
		t.Errorf("the implied parent is %o, of %d", e.Mode, e.UID)
	}
	if e := by["bin/run"]; e.Mode != 0o755 || e.UID != 7 || e.ModTime.Unix() != 5 {
		t.Errorf("bin/run: %+v", e)
	}
	if e := by["var/lib/app/db"]; e.UID != 1000 || e.GID != 1001 || e.Mode != 0o600 {
		t.Errorf("db: %+v", e)
	}
	if a, b := by["z-link"], by["z-more"]; a.Type != File || b.Type != HardLink || b.Link != "opt/x/z-link" {
		t.Errorf("the excluded first name: %+v, %+v", a, b)
	}
	epoch := time.Unix(0, 0)
	v, err := NewVirtual(t.Context(), src.Entries, TarOptions{Epoch: &epoch}, nil)
	must(t, err)
	if err := os.Chtimes(dir+"/bin", time.Now(), time.Unix(77, 0)); err != nil {
		t.Fatal(err)
	}
	again, err := FromPath(dir, opt)
	must(t, err)
	defer again.Close()
	w, err := NewVirtual(t.Context(), again.Entries, TarOptions{Epoch: &epoch}, nil)
	must(t, err)
	if v.DiffID != w.DiffID {
		t.Error("times change the digest")
	}

	file, err := FromPath(dir+"/keep.txt", CreateOptions{Prefix: "etc"})
	must(t, err)
	if p := paths(file.Entries); p != "etc etc/keep.txt" {
		t.Errorf("a file gives %s", p)
	}
	for text, want := range map[string]string{"a uid=x": "meta:1", "\nb what=1": "meta:2", "c mode=99": "meta:1"} {
		_, err := ParseRules("meta", []byte(text))
		wantKind(t, err, diag.Invalid, want)
	}
	_, err = FromPath(dir+"/none", CreateOptions{})
	wantKind(t, err, diag.NotFound, "none")
}

func runTar(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "tar", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	must(t, err)
	return out
}
