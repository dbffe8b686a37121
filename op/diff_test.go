package op

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// script adds a layer that a shell script writes through an overlay mount of the tree; nil is scratch.
func (b *fileBed) script(below *tree.Stack, script string) *tree.Stack {
	b.t.Helper()
	ctx := context.Background()
	if below == nil {
		below = tree.NewStack(b.s, nil)
		b.t.Cleanup(below.Release)
	}
	d, err := b.s.NewLayer(ctx)
	b.ok(err)
	dir := b.t.TempDir()
	undo, err := below.Mount(ctx, dir, d)
	b.ok(err)
	cmd := exec.Command("sh", "-euc", "umask 022\n"+script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	b.ok(undo())
	if err != nil {
		b.t.Fatalf("%s: %s", script, out)
	}
	st := tree.NewDraftStack(b.s, below.IDs(), d, store.LayerInfo{})
	b.commit(st)
	return st
}

func (b *fileBed) made(out []tree.Tree, err error) *tree.Stack {
	b.t.Helper()
	b.ok(err)
	st := out[0].(*tree.Stack)
	if d, _ := st.Pending(); d != nil {
		b.commit(st)
	} else {
		b.t.Cleanup(st.Release)
	}
	return st
}

func (b *fileBed) diff(lower, upper *tree.Stack) *tree.Stack {
	b.t.Helper()
	return b.made(Diff(context.Background(), b.s, trees(lower, upper)))
}

func (b *fileBed) merge(in ...*tree.Stack) *tree.Stack {
	b.t.Helper()
	return b.made(Merge(context.Background(), b.s, trees(in...)))
}

func trees(in ...*tree.Stack) []tree.Tree {
	var out []tree.Tree
	for _, t := range in {
		if t == nil {
			out = append(out, nil)
			continue
		}
		out = append(out, t)
	}
	return out
}

// flat is a tree whose only layer holds what another shows: it shares no layer with anything.
func (b *fileBed) flat(st *tree.Stack) *tree.Stack {
	b.t.Helper()
	v, err := st.Open(context.Background())
	b.ok(err)
	defer v.Close()
	return b.script(nil, "cp -a "+v.Dir+"/. .")
}

// long describes a tree through its mount, with modes, owners and hard links: "755 d/ 644 d/f=text".
func (b *fileBed) long(st *tree.Stack) []string {
	b.t.Helper()
	v, err := st.Open(context.Background())
	b.ok(err)
	defer v.Close()
	first := map[uint64]string{}
	var out []string
	b.ok(filepath.WalkDir(v.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == v.Dir {
			return err
		}
		rel, _ := filepath.Rel(v.Dir, p)
		var st unix.Stat_t
		b.ok(unix.Lstat(p, &st))
		name := rel
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			rel += "/"
		case unix.S_IFLNK:
			l, _ := os.Readlink(p)
			rel += "->" + l
		case unix.S_IFREG:
			data, _ := os.ReadFile(p)
			rel += "=" + string(data)
		case unix.S_IFIFO:
			rel += "|"
		case unix.S_IFSOCK:
			rel += "@"
		default:
			rel += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] != "" {
				rel += "==" + first[st.Ino]
			} else {
				first[st.Ino] = name
			}
		}
		if st.Uid != 0 || st.Gid != 0 {
			rel = fmt.Sprintf("%d:%d %s", st.Uid, st.Gid, rel)
		}
		out = append(out, fmt.Sprintf("%o %s", st.Mode&0o7777, rel))
		return nil
	}))
	return out
}

func (b *fileBed) expect(what string, st *tree.Stack, want string) {
	b.t.Helper()
	got := strings.Join(b.long(st), "\n")
	var lines []string
	for l := range strings.SplitSeq(want, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	if want := strings.Join(lines, "\n"); got != want {
		b.t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

// old makes what a script of a test starts from: files with times of long ago, some without nanoseconds.
const old = `
	mkdir -p keep/sub cut/sub top same
	echo -n k > keep/f; echo -n s > keep/sub/f; echo -n a > cut/a; echo -n b > cut/sub/b; echo -n t > top/t
	echo -n x > same/x; ln -s x same/l; echo -n m > mode; mkfifo pipe; ln -s keep link
	find . -mindepth 1 -exec touch -h -d '2001-02-03 04:05:06' {} +
`

// diffCases: what a script changes in a tree, what the diff is, and what is left of another tree with the same directories
// that the diff is merged onto.
var diffCases = []struct{ name, script, diff, other string }{
	{"nothing", `true`, ``, `+`},
	{"new files", `mkdir -p new/dir; echo -n 1 > new/f; echo -n 2 > keep/g`, `
		755 keep/
		644 keep/g=2
		755 new/
		755 new/dir/
		644 new/f=1`, `+`},
	{"a changed file", `echo -n kk > keep/f; chmod 600 same/x`, `
		755 keep/
		644 keep/f=kk
		755 same/
		600 same/x=x`, `+`},
	{"directories of their own", `chmod 700 keep/sub; chown 3:4 cut`, `
		755 3:4 cut/
		755 keep/
		700 keep/sub/`, `+`},
	{"a deleted file leaves its directory", `rm keep/f`, `755 keep/`, `-keep/f`},
	{"a deleted directory", `rm -r cut`, ``, `-cut`},
	{"a directory made anew deletes only what it had", `rm -r cut; mkdir -p cut/sub; echo -n n > cut/n; echo -n c > cut/sub/c`, `
		755 cut/
		644 cut/n=n
		755 cut/sub/
		644 cut/sub/c=c`, `-cut/a -cut/sub/b`},
	{"a new directory hides nothing", `mkdir extra; echo -n e > extra/e`, `
		755 extra/
		644 extra/e=e`, `+`},
	{"a file instead of a directory", `rm -r cut; echo -n f > cut`, `644 cut=f`, `-cut`},
	{"a directory instead of a file", `rm top/t; mkdir top/t; echo -n 1 > top/t/u`, `
		755 top/
		755 top/t/
		644 top/t/u=1`, `+`},
	{"a symlink instead of a directory", `rm -r cut; ln -s keep cut`, `777 cut->keep`, `-cut`},
	{"a directory instead of a symlink", `rm link; mkdir link; echo -n 1 > link/f`, `
		755 link/
		644 link/f=1`, `+`},
	{"another target", `rm same/l; ln -s y same/l; touch -h -d '2001-02-03 04:05:06' same/l`, `
		755 same/
		777 same/l->y`, `+`},
	{"moved and moved back", `mv same/x t; mv t same/x; mv mode t; mv t mode`, ``, `+`},
	{"the same bytes written again at the same time", `echo -n x > same/x; touch -d '2001-02-03 04:05:06' same/x`, ``, `+`},
	{"other bytes at the same time", `echo -n y > same/x; touch -d '2001-02-03 04:05:06' same/x`, `
		755 same/
		644 same/x=y`, `+`},
	{"only another time", `touch -d '2002-01-01 00:00:00' mode`, `644 mode=m`, `+`},
	{"hard links", `mkdir hard; echo -n 1 > hard/a; ln hard/a hard/b; ln hard/a keep/c`, `
		755 hard/
		644 hard/a=1
		644 hard/b=1==hard/a
		755 keep/
		644 keep/c=1==hard/a`, `+`},
	{"a new name of an old file", `ln mode mode2`, `644 mode2=m`, `+`},
	{"special files", `mkfifo p2; mknod null c 1 3; mknod block b 7 9; rm pipe; mknod pipe c 1 5`, `
		644 block dev 7:9
		644 null dev 1:3
		644 p2|
		644 pipe dev 1:5`, `+`},
	{"an attribute", `setfattr -n user.a -v b mode`, `644 mode=m`, `+`},
}

func TestDiff(t *testing.T) {
	b := newFileBed(t)
	base := b.script(nil, old)
	other := b.script(nil, old+`echo -n o > cut/other; echo -n p > cut/sub/other; mkdir extra; echo -n q > extra/other; touch -d 2001-02-03 cut cut/sub extra`)
	for _, c := range diffCases {
		t.Run(c.name, func(t *testing.T) {
			b := &fileBed{t: t, s: b.s}
			if strings.Contains(c.script, "setfattr") {
				if _, err := exec.LookPath("setfattr"); err != nil {
					t.Skip("no setfattr")
				}
			}
			upper := b.script(base, c.script)
			for name, d := range map[string]*tree.Stack{
				"a layer more": b.diff(base, upper), "layers apart": b.diff(base, b.flat(upper)), "both apart": b.diff(b.flat(base), upper),
			} {
				b.expect(name, d, c.diff)
				same := b.merge(base, d)
				b.expect(name+", merged onto the lower", same, strings.ReplaceAll(strings.Join(b.long(upper), "\n"), "mode2=m==mode", "mode2=m")) // a link to an unchanged file is a new file
				if c.name == "hard links" {
					continue
				}
				b.expect(name+", merged onto another", b.merge(other, d), strings.Join(expected(b.long(other), c.other, c.diff), "\n"))
			}
		})
	}
}

// expected is a tree without the paths that the changes name ("-path"), with the lines of a diff put over it.
func expected(in []string, changes, diff string) []string {
	path := func(line string) string {
		f := strings.Fields(line)
		p := f[1]
		if strings.Contains(p, ":") && len(f) > 2 {
			p = f[2]
		}
		if i := strings.IndexAny(p, "=|@"); i >= 0 {
			p = p[:i]
		}
		p, _, _ = strings.Cut(p, "->")
		return strings.TrimSuffix(p, "/")
	}
	have := map[string]string{}
	drop := func(p string) {
		for k := range have {
			if k == p || strings.HasPrefix(k, p+"/") {
				delete(have, k)
			}
		}
	}
	for _, l := range in {
		have[path(l)] = l
	}
	for _, c := range strings.Fields(changes) {
		if p, ok := strings.CutPrefix(c, "-"); ok {
			drop(p)
		}
	}
	for l := range strings.SplitSeq(diff, "\n") {
		if l = strings.TrimSpace(l); l == "" {
			continue
		}
		if !strings.HasSuffix(l, "/") {
			drop(path(l))
		}
		have[path(l)] = l
	}
	keys := make([]string, 0, len(have))
	for k := range have {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = have[k]
	}
	return out
}

func TestDiffOfEqualAndEmpty(t *testing.T) {
	b := newFileBed(t)
	x := b.script(b.script(nil, old), `rm keep/f; echo -n 2 > two`)
	flat := b.flat(x)
	for name, d := range map[string]*tree.Stack{"self": b.diff(x, x), "scratch": b.diff(nil, nil), "equal trees": b.diff(x, flat), "and back": b.diff(flat, x)} {
		if n := len(d.IDs()); n != 0 {
			t.Errorf("%s: the diff has %d layers", name, n)
		}
	}
	if d := b.diff(nil, x); !slices.Equal(d.IDs(), x.IDs()) {
		t.Errorf("the diff from scratch has the layers %v, not %v", d.IDs(), x.IDs())
	}
	gone := b.diff(x, nil)
	b.expect("to scratch", gone, ``)
	b.expect("to scratch, merged", b.merge(x, b.script(nil, `echo -n 1 > foo; mkdir top; echo -n z > top/z`), gone), `644 foo=1`)
	// The parent of what is deleted is made, where there is none.
	extra := b.script(nil, `mkdir -p e/d; echo -n 1 > e/d/f`)
	b.expect("unmatched", b.merge(flat, b.diff(extra, b.script(extra, `rm e/d/f`))), strings.Join(expected(b.long(flat), "", "755 e/\n755 e/d/"), "\n"))
}

func TestDiffKeepsLayers(t *testing.T) {
	b := newFileBed(t)
	base := b.script(nil, old)
	one := b.script(base, `echo -n 1 > one`)
	two := b.script(one, `rm mode; chmod 700 keep`)
	if d := b.diff(base, two); !slices.Equal(d.IDs(), two.IDs()[1:]) {
		t.Errorf("plain layers were made again: %v of %v", d.IDs(), two.IDs())
	}
	// A layer that is made again is made once.
	odd := b.script(two, `rm -r cut; mkdir cut; truncate -s 16M cut/n`)
	d1, d2 := b.diff(one, odd), b.diff(two, odd)
	if len(d1.IDs()) != 2 || d1.IDs()[0] != two.IDs()[2] || d1.IDs()[1] == odd.IDs()[3] || d1.IDs()[1] != d2.IDs()[0] {
		t.Errorf("layers: %v and %v of %v", d1.IDs(), d2.IDs(), odd.IDs())
	}
	if ino := b.stat(d2, "/cut/n").Ino; ino != b.stat(odd, "/cut/n").Ino {
		t.Error("the file was copied, not linked")
	}
	// So merges of the same trees share layers, and their diff is the rest.
	m1, m2 := b.merge(one, odd), b.merge(one, odd, b.script(nil, `mkdir x`))
	if d := b.diff(m1, m2); !slices.Equal(d.IDs(), m2.IDs()[len(m1.IDs()):]) {
		t.Errorf("the diff of the merges %v and %v has the layers %v", m1.IDs(), m2.IDs(), d.IDs())
	}
}

func TestDiffTimes(t *testing.T) {
	b := newFileBed(t)
	base := b.script(nil, old)
	upper := b.script(base, `rm keep/f; echo -n n > cut/n; touch -d '2003-01-01 00:00:00.123456789' keep cut cut/n`)
	for name, d := range map[string]*tree.Stack{"a layer more": b.diff(base, upper), "apart": b.diff(base, b.flat(upper))} {
		for _, p := range []string{"/keep", "/cut", "/cut/n"} {
			if m, want := b.stat(d, p).Mtim, b.stat(upper, p).Mtim; m != want {
				t.Errorf("%s: %s has the time %v, not %v", name, p, m, want)
			}
		}
	}
}

func TestMergeOfDiffs(t *testing.T) {
	b := newFileBed(t)
	f := func(n string) *tree.Stack { return b.script(nil, "echo -n "+n+" > "+n) }
	A, B, C := f("A"), f("B"), f("C")
	abc, ab := b.merge(A, B, C), b.merge(A, B)
	abNoC := b.merge(A, B, b.script(C, `rm C`))
	onTop := func(below *tree.Stack, script string) *tree.Stack { return b.script(below, script) }
	for _, c := range []struct {
		name string
		got  *tree.Stack
		want string
	}{
		{"diffs only", b.merge(b.diff(A, B), b.diff(B, A)), "644 A=A"},
		{"of merges", b.diff(ab, abc), "644 C=C"},
		{"of merges with deletions", b.merge(abc, b.diff(abc, abNoC)), "644 A=A\n644 B=B"},
		{"a layer on a merge", b.diff(abNoC, onTop(abNoC, `echo -n D > D`)), "644 D=D"},
		{"a deletion on a merge", b.merge(abNoC, b.diff(abc, onTop(abc, `rm A`))), "644 B=B"},
		{"of diffs", b.diff(b.diff(A, ab), b.diff(A, abc)), "644 C=C"},
		{"of diffs, with deletions", b.merge(abc, b.diff(b.diff(A, abc), b.diff(A, ab))), "644 A=A\n644 B=B"},
		{"as parent", onTop(b.diff(A, ab), `echo -n D > D`), "644 B=B\n644 D=D"},
		{"as parent of a deletion", b.merge(ab, onTop(b.diff(A, ab), `rm B`)), "644 A=A"},
		{"nested", b.merge(C, b.merge(A, b.diff(abc, ab)), B), "644 A=A\n644 B=B"},
	} {
		b.expect(c.name, c.got, c.want)
	}
}

func TestMergeHidesOnlyItsOwn(t *testing.T) {
	b := newFileBed(t)
	dir := b.script(nil, `mkdir d; echo -n a > d/a`)
	for _, c := range []struct {
		name string
		got  *tree.Stack
		want string
	}{
		// overlayfs marks every new directory of a mount as opaque.
		{"new directories merge", b.merge(dir, b.script(nil, `mkdir d; echo -n b > d/b`)), "755 d/\n644 d/a=a\n644 d/b=b"},
		{"deleted, then made", b.merge(dir, b.script(b.script(nil, `mkdir d`), `rm -r d`), b.script(nil, `mkdir d; echo -n b > d/b`)), "755 d/\n644 d/b=b"},
		{"a file, then made", b.merge(dir, b.script(nil, `echo -n f > d`), b.script(nil, `mkdir d; echo -n b > d/b`)), "755 d/\n644 d/b=b"},
		{"made anew elsewhere", b.merge(dir, b.script(b.script(nil, `mkdir d; echo -n x > d/x`), `rm -r d; mkdir d; echo -n y > d/y`)), "755 d/\n644 d/a=a\n644 d/y=y"},
		{"a link over a directory", b.merge(dir, b.script(nil, `mkdir r; ln -s r d`)), "777 d->r\n755 r/"},
		{"a directory over a link", b.merge(b.script(nil, `mkdir r; ln -s r d`), dir), "755 d/\n644 d/a=a\n755 r/"},
		{"a deletion below a link", b.merge(b.script(nil, `mkdir r; echo -n k > r/a; ln -s r d`), b.diff(dir, b.script(dir, `rm d/a`))), "755 d/\n755 r/\n644 r/a=k"},
	} {
		b.expect(c.name, c.got, c.want)
	}
}

func TestDiffOfAClientsDirectory(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "a=1", "d/b=2")
	base := b.script(nil, `echo -n 1 > c`)
	st := b.made(Diff(context.Background(), b.s, []tree.Tree{base, b.local()}))
	b.expect("diff", st, "644 a=1\n755 d/\n644 d/b=2")
	b.expect("merge", b.made(Merge(context.Background(), b.s, []tree.Tree{b.script(nil, `echo -n z > z`), b.local(), st})), "644 a=1\n755 d/\n644 d/b=2\n644 z=z")
}

// A whiteout over nothing is no name: a command can list and remove the directory that it is in.
func TestDiffAsRootOfACommand(t *testing.T) {
	b := newFileBed(t)
	base := b.script(nil, old)
	upper := b.script(base, `rm keep/f keep/sub/f mode; echo -n 1 > keep/sub/g`)
	for name, d := range map[string]*tree.Stack{"a layer more": b.diff(base, upper), "apart": b.diff(base, b.flat(upper))} {
		b.expect(name, d, "755 keep/\n755 keep/sub/\n644 keep/sub/g=1")
		after := b.script(d, `test "$(ls -A) $(ls -A keep) $(ls -A keep/sub)" = "keep sub g"; rm -r keep`)
		b.expect(name+", emptied", after, "")
		b.expect(name+", emptied and merged", b.merge(b.script(nil, `mkdir keep; echo -n o > keep/o; echo -n m > mode; touch other`), after), "644 other=")
	}
}

func TestDiffKeepsSockets(t *testing.T) {
	b := newFileBed(t)
	base := b.script(nil, old)
	d, err := b.s.NewLayer(context.Background())
	b.ok(err)
	b.ok(unix.Mknod(d.Dir+"/s", unix.S_IFSOCK|0o600, 0))
	st := tree.NewDraftStack(b.s, nil, d, store.LayerInfo{})
	b.commit(st)
	b.expect("socket", b.diff(base, st), "600 s@")
}

// Whatever random scripts make of a tree, its diff on the lower tree makes it again.
func TestDiffUndoesNothing(t *testing.T) {
	b := newFileBed(t)
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "d/a", "d/b", "d/e/a", "e", "e/a", "e/d/b"}
	steps := []string{
		`mkdir -p "$(dirname N)"; [ -d N ] || echo -n R > N`, `rm -rf N`, `rm -rf N; mkdir -p N`, `[ -e N ] && chmod 7R0 N`,
		`mkdir -p "$(dirname N)"; rm -rf N; ln -s R N`, `[ -d N ] && echo -n R > N/a || true`,
	}
	script := func() string {
		var s strings.Builder
		for range 1 + r.IntN(6) {
			step := strings.NewReplacer("N", names[r.IntN(len(names))], "R", fmt.Sprint(r.IntN(8))).Replace(steps[r.IntN(len(steps))])
			s.WriteString("{ " + step + "; } 2>/dev/null || true\n")
		}
		return s.String()
	}
	for range 15 {
		lower := b.script(b.script(nil, script()), script())
		one, two := script(), script()
		upper := b.script(b.script(lower, one), two)
		alone := b.script(b.script(nil, script()), script())
		want := strings.Join(b.long(upper), "\n")
		b.expect("layers more:\n"+one+two, b.merge(lower, b.diff(lower, upper)), want)
		b.expect("apart:\n"+one+two, b.merge(lower, b.diff(lower, b.flat(upper))), want)
		b.expect("unrelated", b.merge(alone, b.diff(alone, upper)), want)
		if t.Failed() {
			return
		}
	}
}

func TestPass(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "f=1")
	x := b.script(nil, `echo -n x > x`)
	out, err := Pass(context.Background(), b.s, []int{1, 2, 0}, []tree.Tree{b.local(), x, nil})
	b.ok(err)
	for i, want := range []string{"644 x=x", "", "644 f=1"} {
		b.expect("output", out[i].(*tree.Stack), want)
		out[i].Release()
	}
	if _, err := Pass(context.Background(), b.s, []int{1}, []tree.Tree{x}); err == nil {
		t.Error("an input that is not there was passed on")
	}
}

func TestAbove(t *testing.T) {
	type ids = []store.LayerID
	for _, c := range []struct {
		lower, upper, want ids
		ok                 bool
	}{
		{ids{1, 2}, ids{1, 2, 3}, ids{3}, true},
		{ids{1, 2}, ids{1, 2}, ids{}, true},
		{ids{1, 2, 3}, ids{2, 3, 4, 1, 5}, ids{4, 1, 5}, true}, // 1 came again
		{ids{3}, ids{1, 2, 3}, nil, false},
		{ids{1, 2}, ids{1, 3}, nil, false},
	} {
		if got, ok := above(c.lower, c.upper); ok != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("%v above %v: %v, %v", c.upper, c.lower, got, ok)
		}
	}
}
