package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

func picked(p *Pick, rel string) []string {
	var out []string
	for i := range p.Kids {
		k := &p.Kids[i]
		name := joinRel(rel, k.Name)
		if k.IsDir() {
			out = append(out, name+"/")
			out = append(out, picked(k, name)...)
		} else {
			out = append(out, name)
		}
	}
	return out
}

// mergedStack has every way in which layers hide each other.
func mergedStack(t *testing.T, s *store.Store) *Stack {
	a := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{
			"a/one": "1", "a/two": "2", "b/x": "x", "c/deep/f": "f", "file": "old", "d/gone": "g", "lnk": "->a", "e/under": "u",
		})
	})
	b := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"a/three": "3", "file": "new", "c": "now a file", "e/over": "o", "abs": "->/a/../b", "esc": "->../../../etc"})
		whiteout(t, d+"/a/two")
		whiteout(t, d+"/d")
		opaque(t, d+"/b")
		write(t, d, map[string]string{"b/y": "y"})
	})
	c := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"d/again": "again", "a/one": "one"})
		opaque(t, d+"/d")
		whiteout(t, d+"/none")
	})
	st := NewStack(s, []store.LayerID{a, b, c})
	t.Cleanup(st.Release)
	return st
}

func TestStackLooksLikeItsMount(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	st := mergedStack(t, s)
	v, err := st.Open(context.Background())
	check(t, err)
	defer v.Close()
	want := names(t, v.Dir)
	f, err := st.Files()
	check(t, err)
	m, err := f.Pick(context.Background(), graph.Select{Path: "/"}, true)
	check(t, err)
	got := picked(&m[0].Pick, "")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("picture %q\nmount   %q", got, want)
	}
	for _, n := range want {
		host, fi, ok := st.Lookup("/"+n, false)
		seen, err := os.Lstat(filepath.Join(v.Dir, n))
		check(t, err)
		if !ok || fi.Mode() != seen.Mode() || !fi.IsDir() && fi.Size() != seen.Size() {
			t.Errorf("Lookup(%q) = %q %v %v, mount says %v", n, host, fi, ok, seen.Mode())
		}
	}
	for _, n := range []string{"/a/two", "/none", "/d/gone", "/c/deep", "/b/x"} {
		if host, _, ok := st.Lookup(n, true); ok {
			t.Errorf("Lookup(%q) finds %q, which is hidden", n, host)
		}
	}
	for p, data := range map[string]string{"/lnk/one": "one", "/abs/y": "y", "/file": "new", "/../a/./three": "3"} {
		host, _, ok := st.Lookup(p, true)
		if b, _ := os.ReadFile(host); !ok || string(b) != data {
			t.Errorf("Lookup(%q) = %q, %v with %q, want %q", p, host, ok, b, data)
		}
	}
	if host, _, ok := st.Lookup("/esc/passwd", true); ok {
		t.Errorf("a symlink led out to %q", host)
	}
}

func TestContentOfStackAndOfFlatCopyAgree(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	st := mergedStack(t, s)
	v, err := st.Open(context.Background())
	check(t, err)
	defer v.Close()
	flat := local(t, v.Dir, &graph.Local{})
	for _, q := range []graph.Select{{Path: "/"}, {Path: "/a"}, {Path: "/lnk", Follow: true}, {Path: "/*", Wildcard: true}, {Path: "/", Exclude: []string{"a", "!a/one"}}} {
		if a, b := digestOf(t, st, sel(q)), digestOf(t, flat, sel(q)); a != b {
			t.Errorf("%+v: stack %s, its mount %s", q, a, b)
		}
	}
}

func TestViewsShareOneMount(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	st := mergedStack(t, s)
	a, err := st.Open(context.Background())
	check(t, err)
	b, err := st.Open(context.Background())
	check(t, err)
	if a.Dir != b.Dir {
		t.Fatalf("two mounts: %s and %s", a.Dir, b.Dir)
	}
	check(t, a.Close())
	check(t, a.Close()) // twice is once
	if _, err := os.Stat(b.Dir + "/file"); err != nil {
		t.Fatalf("the view of the other user ended: %v", err)
	}
	if err := os.WriteFile(b.Dir+"/file", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Fatalf("a view can be written: %v", err)
	}
	check(t, b.Close())
	if _, err := os.Stat(b.Dir); !os.IsNotExist(err) {
		t.Fatalf("the mount point is left: %v", err)
	}
}

func TestMountWritesIntoTheDraft(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	st := mergedStack(t, s)
	d, err := s.NewLayer(context.Background())
	check(t, err)
	defer d.Discard()
	target := t.TempDir()
	for range 2 { // the second use of the same work directory must work too
		unmount, err := st.Mount(context.Background(), target, d)
		check(t, err)
		check(t, os.WriteFile(target+"/written", []byte("w"), 0o644))
		check(t, os.RemoveAll(target+"/e"))
		check(t, unmount())
	}
	if b, _ := os.ReadFile(d.Dir + "/written"); string(b) != "w" {
		t.Fatal("what was written is not in the draft")
	}
	var sb unix.Stat_t
	if err := unix.Lstat(d.Dir+"/e", &sb); err != nil || !isWhiteout(sb.Mode, uint64(sb.Rdev)) {
		t.Fatalf("no whiteout for the removed directory: %v", err)
	}
}

func TestScratchAndSingleLayerMount(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	scratch := NewStack(s, nil)
	defer scratch.Release()
	v, err := scratch.Open(context.Background())
	check(t, err)
	if n := names(t, v.Dir); len(n) != 0 {
		t.Fatalf("scratch has %q", n)
	}
	check(t, v.Close())
	one := NewStack(s, []store.LayerID{layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"f": "f"})
		whiteout(t, d+"/w")
	})})
	defer one.Release()
	if v, err = one.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(v.Dir + "/w"); !os.IsNotExist(err) {
		t.Errorf("the whiteout of a bottom layer is seen: %v", err)
	}
	check(t, v.Close())
}

func TestManyLayers(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	var ids []store.LayerID
	for i := range 600 {
		ids = append(ids, layerOf(t, s, func(d string) {
			write(t, d, map[string]string{"f" + strconv.Itoa(i): "x", "last": strconv.Itoa(i)})
			if i == 550 {
				whiteout(t, d+"/f3")
			}
		}))
	}
	st := NewStack(s, ids)
	defer st.Release()
	v, err := st.Open(context.Background())
	check(t, err)
	defer v.Close()
	if b, _ := os.ReadFile(v.Dir + "/last"); string(b) != "599" {
		t.Errorf("last = %q", b)
	}
	list, err := os.ReadDir(v.Dir)
	check(t, err)
	if len(list) != 600 { // 600 names, one deleted, and "last"
		t.Errorf("%d entries", len(list))
	}
	if _, err := os.Stat(v.Dir + "/f3"); !os.IsNotExist(err) {
		t.Error("a whiteout above the foundation does not hide what is in it")
	}
}

func TestOldMount(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	st := mergedStack(t, s)
	fd, err := st.overlay().oldMount()
	check(t, err)
	defer unix.Close(fd)
	b, err := os.ReadFile(fdPath(fd) + "/file")
	if err != nil || string(b) != "new" {
		t.Fatalf("file = %q, %v", b, err)
	}
}

func TestContentProperties(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"d/a": "a", "d/b": "b", "d/sub/c": "c", "l": "->d/a"})
	whole := sel(graph.Select{Path: "/d"})
	base := digestOf(t, local(t, dir, &graph.Local{}), whole)
	same := func(what string, want bool) {
		t.Helper()
		if got := digestOf(t, local(t, dir, &graph.Local{}), whole); (got == base) != want {
			t.Errorf("%s: the digest is the same: %v, want %v", what, got == base, want)
		}
	}
	now := time.Unix(1e9, 5)
	check(t, os.Chtimes(dir+"/d/a", now, now))
	same("mtime of a file", true)
	check(t, os.Chtimes(dir+"/d", now, now))
	same("mtime of a directory", true)
	check(t, os.Chmod(dir+"/d/a", 0o600))
	same("mode", false)
	check(t, os.Chmod(dir+"/d/a", 0o644))
	same("mode back", true)
	check(t, os.Remove(dir+"/d/b"))
	same("a file less", false)
	write(t, dir, map[string]string{"d/b": "b"})
	same("made again, in another order", true)
	write(t, dir, map[string]string{"d/b": "B"})
	same("content", false)
	write(t, dir, map[string]string{"d/b": "b"})
	check(t, os.Rename(dir+"/d/sub", dir+"/d/sup"))
	same("a directory renamed", false)
	check(t, os.Rename(dir+"/d/sup", dir+"/d/sub"))
	if os.Geteuid() == 0 {
		check(t, os.Lchown(dir+"/d/a", 1000, 1000))
		same("owner of the client's file", true)
	}
	l := local(t, dir, &graph.Local{})
	ab := sel(graph.Select{Path: "/d/a"}, graph.Select{Path: "/d/b"})
	ba := sel(graph.Select{Path: "/d/b"}, graph.Select{Path: "/d/a"}, graph.Select{Path: "/d/b"})
	if digestOf(t, l, ab) != digestOf(t, l, ba) {
		t.Error("the order of the paths matters")
	}
	check(t, os.Chmod(dir+"/d", 0o700))
	contents := sel(graph.Select{Path: "/d", Contents: true})
	before := digestOf(t, local(t, dir, &graph.Local{}), contents)
	check(t, os.Chmod(dir+"/d", 0o755))
	if digestOf(t, local(t, dir, &graph.Local{}), contents) != before {
		t.Error("a directory's own mode matters to its contents")
	}
	link := digestOf(t, l, sel(graph.Select{Path: "/l"}))
	if link == digestOf(t, l, sel(graph.Select{Path: "/l", Follow: true})) {
		t.Error("a link is as what it points to")
	}
}

func TestSelection(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"src/main.go": "m", "src/main_test.go": "t", "src/lib/a.go": "a", "src/lib/a_test.go": "t", "src/data/x.bin": "x",
		"docs/readme.md": "r", "a.txt": "a", "b.txt": "b", "in": "->src", "out": "->../..", "abs": "->/src/lib",
	})
	for _, c := range []struct {
		name string
		sel  graph.Select
		want string
	}{
		{"all of a directory", graph.Select{Path: "/src/lib"}, "a.go a_test.go"},
		{"exclude", graph.Select{Path: "/src", Exclude: []string{"**/*_test.go", "data"}}, "lib/ lib/a.go main.go"},
		{"exclude with negation", graph.Select{Path: "/src", Exclude: []string{"lib", "!lib/a.go", "data", "main*"}}, "lib/ lib/a.go"},
		{"include", graph.Select{Path: "/", Include: []string{"src/*/x.bin", "docs"}}, "docs/ docs/readme.md src/ src/data/ src/data/x.bin"},
		{"include and exclude", graph.Select{Path: "/src", Include: []string{"**/*.go"}, Exclude: []string{"lib"}}, "main.go main_test.go"},
		{"through a symlink", graph.Select{Path: "/in/lib"}, "a.go a_test.go"},
		{"an absolute symlink stays inside", graph.Select{Path: "/abs", Follow: true}, "a.go a_test.go"},
		{"a symlink out of the tree is its root", graph.Select{Path: "/out/src/lib"}, "a.go a_test.go"},
	} {
		f, _ := local(t, dir, &graph.Local{}).Files()
		m, err := f.Pick(context.Background(), c.sel, true)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := strings.Join(picked(&m[0].Pick, ""), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	f, _ := local(t, dir, &graph.Local{}).Files()
	m, err := f.Pick(context.Background(), graph.Select{Path: "/*.txt", Wildcard: true}, false)
	check(t, err)
	if len(m) != 2 || m[0].Path != "/a.txt" || m[1].Path != "/b.txt" {
		t.Errorf("wildcard: %+v", m)
	}
	if m, err = f.Pick(context.Background(), graph.Select{Path: "/no*", Wildcard: true}, false); err != nil || len(m) != 0 {
		t.Errorf("a wildcard without a match: %v, %v", m, err)
	}
	for _, c := range []struct{ required, err string }{{"/src/lib", ""}, {"src/lib", ""}, {"/src/*/x.bin", ""}, {"/src/nothing", `"/src/nothing": not found`}} {
		_, err := f.Pick(context.Background(), graph.Select{Path: "/", Include: []string{"src/**"}, Required: []string{c.required}}, false)
		if c.err == "" && err != nil || c.err != "" && (err == nil || err.Error() != c.err || diag.KindOf(err) != diag.NotFound) {
			t.Errorf("required %q: %v, want %q", c.required, err, c.err)
		}
	}
}

// TestRequiredPathIsNamedFromTheRoot: what COPY --parents DIR/./FILE misses is DIR/FILE, and the error says whether it is there.
func TestRequiredPathIsNamedFromTheRoot(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"d/s/config.json": "{}", "d/s/g": "g", "d/link": "->s"})
	f, _ := local(t, dir, &graph.Local{}).Files()
	const hidden = "it exists, but the ignore file or the filters of the directory leave it out"
	for _, c := range []struct{ root, required, exclude, err, hint string }{
		{"/d", "s/config.json", "", "", ""},
		{"/d", "s/config.json", "**/*.json", `"/d/s/config.json": not found`, hidden},
		{"/d", "/d/s/config.json", "**/*.json", `"/d/s/config.json": not found`, hidden},
		{"/", "d/s/config.json", "**/*.json", `"/d/s/config.json": not found`, hidden},
		{"/d", "s/confg.json", "", `"/d/s/confg.json": not found: did you mean "config.json"?`, ""},
		{"/d", "s/n*", "", `"/d/s/n*": not found`, ""},
		{"/d", "link/g", "", `"/d/link/g": not found`, ""},
	} {
		s := graph.Select{Path: c.root, Include: []string{"**"}, Required: []string{c.required}}
		if c.exclude != "" {
			s.Exclude = []string{c.exclude}
		}
		_, err := f.Pick(context.Background(), s, false)
		if c.err == "" {
			check(t, err)
			continue
		}
		if d, ok := errors.AsType[*diag.Error](err); !ok || d.Kind != diag.NotFound || err.Error() != c.err || d.Hint != c.hint {
			t.Errorf("%s, %s without %q: %+v, want %s (%s)", c.root, c.required, c.exclude, err, c.err, c.hint)
		}
	}
}

func TestMissingPathSuggests(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"app/config.json": "{}", "secret.key": "s"})
	l := local(t, dir, &graph.Local{Exclude: []string{"*.key"}})
	_, err := l.Content(context.Background(), sel(graph.Select{Path: "/app/confg.json"}))
	if err == nil || err.Error() != `"/app/confg.json": not found: did you mean "config.json"?` || diag.KindOf(err) != diag.NotFound {
		t.Errorf("got %v", err)
	}
	_, err = l.Content(context.Background(), sel(graph.Select{Path: "/secret.key"}))
	if d, ok := errors.AsType[*diag.Error](err); !ok || d.Kind != diag.NotFound || !strings.Contains(d.Hint, "ignore file") {
		t.Errorf("an excluded file: %+v", err)
	}
	_, err = l.Content(context.Background(), sel(graph.Select{Path: "/app/config.json/x"}))
	if err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("got %v", err)
	}
}

func TestLocalFilter(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"keep/a": "a", "node_modules/big/x": "x", "node_modules/keep/y": "y", "logs/1.log": "l", "logs/2.txt": "t", "empty/.gitkeep": "",
		"cur": "->versions/2", "versions/1/f": "1", "versions/2/f": "2",
	})
	show := func(op *graph.Local) string {
		f, err := local(t, dir, op).Files()
		check(t, err)
		m, err := f.Pick(context.Background(), graph.Select{Path: "/"}, false)
		check(t, err)
		return strings.Join(picked(&m[0].Pick, ""), " ")
	}
	for _, c := range []struct {
		op   graph.Local
		want string
	}{
		{
			graph.Local{Exclude: []string{"node_modules", "!node_modules/keep", "**/*.log", "versions", "cur", "empty/*"}},
			"empty/ keep/ keep/a logs/ logs/2.txt node_modules/ node_modules/keep/ node_modules/keep/y",
		},
		{graph.Local{Include: []string{"keep"}}, "keep/ keep/a"},
		{graph.Local{Include: []string{"*/a"}}, "keep/ keep/a"},
		{graph.Local{Include: []string{"keep"}, Follow: []string{"cur/f"}}, "cur keep/ keep/a versions/ versions/2/ versions/2/f"},
		{graph.Local{Follow: []string{"versions/*"}, Exclude: []string{"versions/1"}}, "versions/ versions/2/ versions/2/f"},
	} {
		if got := show(&c.op); got != c.want {
			t.Errorf("%+v:\n got %q\nwant %q", c.op, got, c.want)
		}
	}
	l := local(t, dir, &graph.Local{Exclude: []string{"node_modules", "!node_modules/keep"}})
	v, err := l.Open(context.Background())
	check(t, err)
	for p, want := range map[string]bool{"keep/a": true, "node_modules/big/x": false, "node_modules/keep/y": true, "": true} {
		if got, err := v.Match(p); err != nil || got != want {
			t.Errorf("Match(%q) = %v, %v", p, got, err)
		}
	}
	if _, err := local(t, dir, &graph.Local{Exclude: []string{"[a"}}).Content(context.Background(), *graph.All()); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a malformed pattern: %v", err)
	}
}

// What no selector reaches is not read: an unreadable directory and a FIFO elsewhere in the context do no harm, and a FIFO
// that is selected does not block.
func TestReadsOnlyWhatIsSelected(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"src/a": "a", "other/b": "b"})
	check(t, unix.Mkfifo(dir+"/other/pipe", 0o644))
	l := local(t, dir, &graph.Local{})
	digestOf(t, l, sel(graph.Select{Path: "/src"}))
	for i := range l.files.top.dir.kids {
		k := &l.files.top.dir.kids[i]
		if k.Name == "other" && (k.known || k.dir.listed) {
			t.Error("a directory that is not selected was looked at")
		}
	}
	digestOf(t, l, sel(graph.Select{Path: "/other"}))
}

func TestHostileContext(t *testing.T) {
	dir := t.TempDir()
	canary := filepath.Join(t.TempDir(), "canary")
	check(t, os.WriteFile(canary, []byte("secret"), 0o644))
	check(t, os.Symlink("/dev/zero", dir+"/zero"))
	check(t, os.Symlink(canary, dir+"/leak"))
	check(t, os.Symlink(filepath.Dir(canary), dir+"/up"))
	check(t, os.Symlink("loop2", dir+"/loop1"))
	check(t, os.Symlink("loop1", dir+"/loop2"))
	check(t, unix.Mkfifo(dir+"/fifo", 0o644))
	f, _ := local(t, dir, &graph.Local{}).Files()
	for _, p := range []string{"/leak", "/up/canary", "/zero", "/loop1", "/fifo", "/../../../../../../etc/passwd"} {
		if b, err := f.ReadFile(context.Background(), p, 1<<20); err == nil {
			t.Errorf("%s was read: %.20q", p, b)
		}
	}
	// A directory that becomes a symlink after it was listed is not followed.
	write(t, dir, map[string]string{"d/canary": "mine"})
	f, _ = local(t, dir, &graph.Local{}).Files()
	if _, err := f.Pick(context.Background(), graph.Select{Path: "/d"}, false); err != nil {
		t.Fatal(err)
	}
	check(t, os.RemoveAll(dir+"/d"))
	check(t, os.Symlink(filepath.Dir(canary), dir+"/d"))
	if _, err := f.Pick(context.Background(), graph.Select{Path: "/d"}, true); err == nil {
		t.Error("the digest was taken through the new symlink")
	}
	if _, err := f.ReadFile(context.Background(), "/d/canary", 1<<20); err == nil {
		t.Error("the file was read through the new symlink")
	}
}

type treeDir = dir

func TestIndex(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a/1": "one", "a/2": "two", "b/3": "three", "top": "top"})
	old(t, dir)
	hashed := func() map[string]bool { // what had to be read
		known := NewIndexes(root).Get("k") // as it was before
		l := NewLocal(NewIndexes(root).Get("k"), session.Dir{Path: dir, Key: "k"}, &graph.Local{})
		known.dir("")
		_, err := l.Content(context.Background(), *graph.All())
		check(t, err)
		out := map[string]bool{}
		var visit func(d *treeDir)
		visit = func(d *treeDir) {
			rec := known.dir(d.rel)
			for i := range d.kids {
				e := &d.kids[i]
				if e.dir != nil {
					visit(e.dir)
				} else if p := (&Pick{Entry: &Entry{Name: e.Name, Size: e.Size, MTime: e.MTime, CTime: e.CTime, Ino: e.Ino}}); !p.recall(rec) {
					out[joinRel(d.rel, e.Name)] = true
				} else if p.sum != e.sum {
					t.Errorf("%s: the index is wrong", joinRel(d.rel, e.Name))
				}
			}
		}
		visit(l.files.top.dir)
		l.Release()
		return out
	}
	if n := hashed(); len(n) != 4 {
		t.Fatalf("first time: %v", n)
	}
	if n := hashed(); len(n) != 0 {
		t.Fatalf("unchanged: read %v", n)
	}
	write(t, dir, map[string]string{"a/2": "TWO"})
	if n := hashed(); len(n) != 1 || !n["a/2"] {
		t.Fatalf("one changed: read %v", n)
	}
	// It was hashed right after the change: its times could hide a second one, so it is not trusted yet.
	if n := hashed(); len(n) > 1 || len(n) == 1 && !n["a/2"] {
		t.Fatalf("racy: read %v", n)
	}
	old(t, dir)
	hashed()
	if n := hashed(); len(n) != 0 {
		t.Fatalf("settled: read %v", n)
	}
	// A broken file is as none.
	files, _ := filepath.Glob(root + "/index/stat-*")
	if len(files) != 1 {
		t.Fatalf("index files: %v", files)
	}
	data, err := os.ReadFile(files[0])
	check(t, err)
	data[len(data)/2] ^= 1
	check(t, os.WriteFile(files[0], data, 0o600))
	if n := hashed(); len(n) != 4 {
		t.Fatalf("after a flipped bit: read %v", n)
	}
}

func TestRacyFilesAreNotTrusted(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	x := NewIndexes(root)
	mtime := time.Unix(1e9, 0)
	content := func(data string) graph.Digest {
		check(t, os.WriteFile(dir+"/f", []byte(data), 0o644))
		check(t, os.Chtimes(dir+"/f", mtime, mtime)) // the same size, mtime and inode, and nearly the same ctime
		l := NewLocal(x.Get("k"), session.Dir{Path: dir}, &graph.Local{})
		defer l.Release()
		return digestOf(t, l, *graph.All())
	}
	seen := map[graph.Digest]string{}
	for i := range 50 {
		data := strconv.Itoa(100 + i)
		d := content(data)
		if other, ok := seen[d]; ok {
			t.Fatalf("%q has the digest of %q", data, other)
		}
		seen[d] = data
	}
}

func TestContentInParallel(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{}
	for i := range 40 {
		for j := range 20 {
			files[filepath.Join("d"+strconv.Itoa(i), strconv.Itoa(j))] = strconv.Itoa(i * j)
		}
	}
	write(t, dir, files)
	l := local(t, dir, &graph.Local{})
	want := digestOf(t, local(t, dir, &graph.Local{}), *graph.All())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if d, err := l.Content(context.Background(), *graph.All()); err != nil || d != want {
				t.Errorf("%s, %v; want %s", d, err, want)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("client left")
	cancel(gone)
	if _, err := local(t, dir, &graph.Local{}).Content(ctx, *graph.All()); !errors.Is(err, gone) {
		t.Errorf("cancelled: %v", err)
	}
}
