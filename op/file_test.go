package op

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// fileBed is a store, and a client's directory.
type fileBed struct {
	t       testing.TB
	s       *store.Store
	dir     string
	x       *tree.Indexes
	changes []string // what the runs of an earlier copy again said of their files
}

func newFileBed(t testing.TB) *fileBed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &fileBed{t: t, s: s, dir: t.TempDir(), x: tree.NewIndexes(s.Root())}
}

func (b *fileBed) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// put writes files: "->x" is a symlink to x, a name that ends in "/" a directory.
func (b *fileBed) put(root string, files ...string) {
	b.t.Helper()
	for _, f := range files {
		name, data, _ := strings.Cut(f, "=")
		p := filepath.Join(root, name)
		b.ok(os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case strings.HasSuffix(name, "/"):
			b.ok(os.MkdirAll(p, 0o755))
		case strings.HasPrefix(data, "->"):
			b.ok(os.Symlink(data[2:], p))
		default:
			b.ok(os.WriteFile(p, []byte(data), 0o644))
		}
		b.ok(unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 1e9, Nsec: 7}, {Sec: 1e9, Nsec: 7}}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// layer commits files as a layer on top of others.
func (b *fileBed) layer(below *tree.Stack, files ...string) *tree.Stack {
	b.t.Helper()
	d, err := b.s.NewLayer(context.Background())
	b.ok(err)
	b.put(d.Dir, files...)
	var ids []store.LayerID
	if below != nil {
		ids = below.IDs()
	}
	st := tree.NewDraftStack(b.s, ids, d, store.LayerInfo{})
	b.commit(st)
	return st
}

func (b *fileBed) commit(st *tree.Stack) {
	b.t.Helper()
	d, info := st.Pending()
	b.ok(b.s.Update(context.Background(), func(t *store.Batch) error { t.Layer(d, info); return nil }))
	st.Committed()
	b.t.Cleanup(st.Release)
}

func (b *fileBed) local() *tree.Local {
	l := tree.NewLocal(b.x.Get(b.dir), session.Dir{Path: b.dir}, &graph.Local{})
	b.t.Cleanup(l.Release)
	return l
}

func (b *fileBed) run(in []tree.Tree, actions ...graph.Action) ([]tree.Tree, error) {
	r := &FileRunner{Store: b.s}
	return r.Run(context.Background(), &graph.File{Actions: actions}, in, FileEnv{Changed: func(files string) { b.changes = append(b.changes, files) }})
}

// copied runs one copy from the client's directory onto base and returns the committed result.
func (b *fileBed) copied(base *tree.Stack, c graph.Copy) (*tree.Stack, error) {
	b.t.Helper()
	in := []tree.Tree{nil, b.local()}
	if base != nil {
		in[0] = base
	}
	out, err := b.run(in, graph.Action{In: 0, From: 1, Copy: &c})
	if err != nil {
		return nil, err
	}
	st := out[0].(*tree.Stack)
	b.commit(st)
	return st, nil
}

// list describes a tree through its mount: "path=content", "path->link", "path/".
func (b *fileBed) list(st *tree.Stack) []string {
	b.t.Helper()
	v, err := st.Open(context.Background())
	b.ok(err)
	defer v.Close()
	var out []string
	b.ok(filepath.WalkDir(v.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == v.Dir {
			return err
		}
		rel, _ := filepath.Rel(v.Dir, p)
		switch d.Type() {
		case fs.ModeDir:
			rel += "/"
		case fs.ModeSymlink:
			l, _ := os.Readlink(p)
			rel += "->" + l
		case 0:
			data, _ := os.ReadFile(p)
			rel += "=" + string(data)
		default:
			rel += "?" + d.Type().String()
		}
		out = append(out, rel)
		return nil
	}))
	return out
}

func (b *fileBed) stat(st *tree.Stack, p string) *syscall.Stat_t {
	b.t.Helper()
	_, fi, ok := st.Lookup(p, false)
	if !ok {
		b.t.Fatalf("%s does not exist", p)
	}
	return fi.Sys().(*syscall.Stat_t)
}

func TestCopyDestinations(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "f=f", "g.txt=g", "h.txt=h", "d/one=1", "d/sub/two=2", "lf=->f", "ld=->d", "dang=->nowhere")
	base := b.layer(nil, "etc/passwd=x", "app/one=old", "app/keep=k", "file=file", "ln=->app", "out=->../../..")
	base = b.layer(base, "app/sub/three=3")
	has := "app/ app/keep=k app/one=old app/sub/ app/sub/three=3 etc/ etc/passwd=x file=file ln->app out->../../.."
	// What each copy adds to, or (with "-") takes from, the base.
	for _, c := range []struct {
		name string
		copy graph.Copy
		want string // changes, or "error: …"
	}{
		{"file to a new name", graph.Copy{Src: "/f", Dest: "/new"}, "new=f"},
		{"file into new/", graph.Copy{Src: "/f", Dest: "/x/y/", CreateDest: true}, "x/ x/y/ x/y/f=f"},
		{"file to x/y", graph.Copy{Src: "/f", Dest: "/x/y", CreateDest: true}, "x/ x/y=f"},
		{"no CreateDest", graph.Copy{Src: "/f", Dest: "/x/y"}, "error: not found"},
		{"file into a directory", graph.Copy{Src: "/f", Dest: "/app"}, "app/f=f"},
		{"file over a file", graph.Copy{Src: "/f", Dest: "/file"}, "-file=file file=f"},
		{"file through a symlink to a directory", graph.Copy{Src: "/f", Dest: "/ln/"}, "app/f=f"},
		{"file to a symlink that is a directory", graph.Copy{Src: "/f", Dest: "/ln"}, "app/f=f"},
		{"a symlink that points out stays inside", graph.Copy{Src: "/f", Dest: "/out/"}, "f=f"},
		{"dots stay inside", graph.Copy{Src: "/../../f", Dest: "/../../x"}, "x=f"},
		{"file under a file", graph.Copy{Src: "/f", Dest: "/file/x/", CreateDest: true}, "error: not a directory"},
		{"dir to a new name", graph.Copy{Src: "/d", Dest: "/new"}, "new/ new/one=1 new/sub/ new/sub/two=2"},
		{"dir into a directory", graph.Copy{Src: "/d", Dest: "/app"}, "app/d/ app/d/one=1 app/d/sub/ app/d/sub/two=2"},
		{"contents into a directory", graph.Copy{Src: "/d", Dest: "/app", DirContents: true}, "-app/one=old app/one=1 app/sub/two=2"},
		{"contents into new/", graph.Copy{Src: "/d", Dest: "/n/m/", DirContents: true, CreateDest: true}, "n/ n/m/ n/m/one=1 n/m/sub/ n/m/sub/two=2"},
		{"contents to the root", graph.Copy{Src: "/d/", Dest: "/", DirContents: true}, "one=1 sub/ sub/two=2"},
		{"src/. is the contents", graph.Copy{Src: "/d/.", Dest: "/app/"}, "-app/one=old app/one=1 app/sub/two=2"},
		{"dir over a file", graph.Copy{Src: "/d", Dest: "/file", DirContents: true}, "error: over the file"},
		{"dir onto a file in a directory", graph.Copy{Src: "/", Dest: "/etc/passwd", DirContents: true}, "error: over the file"},
		{"wildcard", graph.Copy{Src: "/*.txt", Dest: "/t/", Wildcard: true, CreateDest: true}, "t/ t/g.txt=g t/h.txt=h"},
		{"wildcard below", graph.Copy{Src: "/*/o*", Dest: "/t/", Wildcard: true, CreateDest: true}, "t/ t/one=1"},
		{"wildcard without a match", graph.Copy{Src: "/*.no", Dest: "/t/", Wildcard: true, CreateDest: true}, "error: matches nothing"},
		{"and allowed", graph.Copy{Src: "/*.no", Dest: "/t/", Wildcard: true, CreateDest: true, AllowEmpty: true}, ""},
		{"missing", graph.Copy{Src: "/hh.txt", Dest: "/"}, `error: did you mean "h.txt"?`},
		{"a symlink", graph.Copy{Src: "/lf", Dest: "/app/"}, "app/lf->f"},
		{"followed", graph.Copy{Src: "/lf", Dest: "/app/", FollowSymlink: true}, "app/lf=f"},
		{"a symlink to a directory followed", graph.Copy{Src: "/ld", Dest: "/app/", FollowSymlink: true}, "app/ld/ app/ld/one=1 app/ld/sub/ app/ld/sub/two=2"},
		{"a dangling symlink", graph.Copy{Src: "/dang", Dest: "/app/"}, "app/dang->nowhere"},
		{"a dangling symlink followed", graph.Copy{Src: "/dang", Dest: "/app/", FollowSymlink: true}, "error: not found"},
		{"exclude", graph.Copy{Src: "/d", Dest: "/n", Exclude: []string{"sub"}}, "n/ n/one=1"},
		{"exclude with negation", graph.Copy{Src: "/d", Dest: "/n", Exclude: []string{"*", "!sub/two"}}, "n/ n/sub/ n/sub/two=2"},
		{"include", graph.Copy{Src: "/", Dest: "/n", Include: []string{"d/*/two", "g*"}}, "n/ n/d/ n/d/sub/ n/d/sub/two=2 n/g.txt=g"},
		{"required", graph.Copy{Src: "/", Dest: "/n", Include: []string{"d/no"}, Required: []string{"/d/no"}}, "error: not found"},
		{"replace another type", graph.Copy{Src: "/f", Dest: "/app/sub", AlwaysReplace: true}, "app/sub/f=f"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, err := b.copied(base, c.copy)
			if want, ok := strings.CutPrefix(c.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("got %v, want %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Fields(has)
			for _, w := range strings.Fields(c.want) {
				if gone, ok := strings.CutPrefix(w, "-"); ok {
					want = slices.DeleteFunc(want, func(s string) bool { return s == gone })
				} else {
					want = append(want, w)
				}
			}
			got := b.list(st)
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if n := len(st.IDs()); n != 3 {
				t.Errorf("%d layers, want 3", n)
			}
		})
	}
}

func TestCopyOverOtherTypes(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "s/x=file", "s/y/in=dir", "s/z/in=dir")
	base := b.layer(nil, "d/x/below=1", "d/y=file", "d/z=->/etc", "etc/")
	_, err := b.copied(base, graph.Copy{Src: "/s", Dest: "/d", DirContents: true})
	if err == nil || !strings.Contains(err.Error(), "cannot copy a") {
		t.Errorf("got %v", err)
	}
	st, err := b.copied(base, graph.Copy{Src: "/s", Dest: "/d", DirContents: true, AlwaysReplace: true})
	b.ok(err)
	if got, want := strings.Join(b.list(st), " "), "d/ d/x=file d/y/ d/y/in=dir d/z/ d/z/in=dir etc/"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCopyMetadata(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "d/run=r", "d/plain=p", "d/sub/x=x", "d/suid=s")
	b.ok(os.Chmod(b.dir+"/d/run", 0o750))
	b.ok(os.Chmod(b.dir+"/d/suid", 0o4711|os.ModeSetuid))
	b.ok(os.Chmod(b.dir+"/d/sub", 0o700))
	b.ok(os.Lchown(b.dir+"/d/plain", 1234, 1234))
	b.put(b.dir, "d/sub/", "d/")
	base := b.layer(nil, "etc/passwd=root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n", "etc/group=root:x:0:\nstaff:x:50:\n", "there/")
	b.ok(os.Chmod(b.s.LayerDir(base.IDs()[0])+"/there", 0o711))
	mode, when := uint32(0o640), time.Unix(123, 456)
	for _, c := range []struct {
		name string
		copy graph.Copy
		want string // path:mode:uid:gid:mtime …
	}{
		{"as in the source, but root's", graph.Copy{Src: "/d", Dest: "/n"}, "n:755:0:0:1000000000000000007 n/run:750:0:0:1000000000000000007 n/plain:644:0:0:1000000000000000007 n/sub:700:0:0:1000000000000000007 n/suid:4711:0:0:1000000000000000007"},
		{"what is there keeps its mode", graph.Copy{Src: "/d", Dest: "/there", DirContents: true}, "there:711:0:0:1000000000000000007 there/sub:700:0:0:1000000000000000007"},
		{"by number", graph.Copy{Src: "/d/run", Dest: "/a/b/run", CreateDest: true, Owner: &graph.Owner{UID: 7, GID: 8}}, "a:755:7:8: a/b:755:7:8: a/b/run:750:7:8:1000000000000000007"},
		{"by name", graph.Copy{Src: "/d", Dest: "/n", Owner: &graph.Owner{User: "web", GID: graph.None}}, "n/run:750:33:44: n/sub/x:644:33:44:"},
		{"user and group by name", graph.Copy{Src: "/d", Dest: "/n", Owner: &graph.Owner{User: "web", Group: "staff"}}, "n/run:750:33:50:"},
		{"an unknown name is root", graph.Copy{Src: "/d", Dest: "/n", Owner: &graph.Owner{User: "nobody", GID: graph.None}}, "n/run:750:0:0:"},
		{"octal", graph.Copy{Src: "/d", Dest: "/n/m/", DirContents: true, CreateDest: true, Mode: &mode}, "n:640:0:0: n/m/run:640:0:0: n/m/sub:640:0:0:"},
		{"symbolic", graph.Copy{Src: "/d", Dest: "/n", ModeStr: "u=rwX,go=rX"}, "n/run:755:0:0: n/plain:644:0:0: n/sub:755:0:0:"},
		{"symbolic, by bits", graph.Copy{Src: "/d", Dest: "/n", ModeStr: "g+w,o-r"}, "n/plain:660:0:0: n/run:770:0:0:"},
		{"time", graph.Copy{Src: "/d", Dest: "/n/m", CreateDest: true, Time: &when}, "n:755:0:0:123000000456 n/m:755:0:0:123000000456 n/m/run:750:0:0:123000000456 n/m/sub/x:644:0:0:123000000456"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, err := b.copied(base, c.copy)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range strings.Fields(c.want) {
				p, _, _ := strings.Cut(w, ":")
				s := b.stat(st, p)
				got := fmt.Sprintf("%s:%o:%d:%d:%d", p, s.Mode&0o7777, s.Uid, s.Gid, s.Mtim.Nano())
				if !strings.HasPrefix(got, w) {
					t.Errorf("got %s, want %s", got, w)
				}
			}
		})
	}
	if _, err := b.copied(base, graph.Copy{Src: "/d", Dest: "/n", ModeStr: "u=q"}); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a bad mode: %v", err)
	}
}

func TestParseMode(t *testing.T) {
	for _, c := range []struct {
		mode    string
		in, out uint32
	}{
		{"755", unix.S_IFREG | 0o600, 0o755},
		{"4755", unix.S_IFREG, 0o4755},
		{"a+x", unix.S_IFREG | 0o644, 0o755},
		{"+x", unix.S_IFREG | 0o644, 0o755},
		{"go=", unix.S_IFREG | 0o777, 0o700},
		{"g=u", unix.S_IFREG | 0o640, 0o660},
		{"a=rX", unix.S_IFREG | 0o600, 0o444},
		{"a=rX", unix.S_IFDIR | 0o600, 0o555},
		{"u+s,g+s", unix.S_IFREG | 0o755, 0o6755},
		{"u-s", unix.S_IFREG | 0o4755, 0o755},
		{"+t", unix.S_IFDIR | 0o777, 0o1777},
		{"u=rw+x-w", unix.S_IFREG, 0o500},
		{"u=rwx", unix.S_IFREG | 0o4755, 0o755},
		{"u=rwx", unix.S_IFDIR | 0o4755, 0o4755},
	} {
		m, err := parseMode(c.mode)
		if err != nil {
			t.Errorf("%s: %v", c.mode, err)
		} else if got := applyMode(m, c.in); got != c.out {
			t.Errorf("%s of %o: %o, want %o", c.mode, c.in, got, c.out)
		}
	}
	for _, bad := range []string{"", "u", "x+r", "u+z", "88", "u=rg", "77777"} {
		if _, err := parseMode(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestMakeAndRemove(t *testing.T) {
	b := newFileBed(t)
	base := b.layer(nil, "a/b/c=c", "a/x=x", "l=->a", "1.log=", "2.log=", "out=->/..")
	base = b.layer(base, "a/y=y")
	for _, c := range []struct {
		name    string
		actions []graph.Action
		want    string
	}{
		{"mkfile", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/a/n", Data: []byte("n")}}}, "a/n=n"},
		{"mkfile replaces", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/a/x", Data: []byte("n")}}}, "-a/x=x a/x=n"},
		{"mkfile through a symlink", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/l/x", Data: []byte("n")}}}, "-a/x=x a/x=n"},
		{"mkfile over a directory", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/a"}}}, "error: is a directory"},
		{"mkfile without a parent", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/no/x"}}}, "error: not found"},
		{"mkdir", []graph.Action{{Mkdir: &graph.Mkdir{Path: "/a/n", Mode: 0o700}}}, "a/n/"},
		{"mkdir exists", []graph.Action{{Mkdir: &graph.Mkdir{Path: "/a/x", Mode: 0o700}}}, ""},
		{"mkdir -p", []graph.Action{{Mkdir: &graph.Mkdir{Path: "/l/n/m", Parents: true, Mode: 0o700}}}, "a/n/ a/n/m/"},
		{"mkdir -p over a file", []graph.Action{{Mkdir: &graph.Mkdir{Path: "/a/x/y", Parents: true}}}, "error: not a directory"},
		{"symlink", []graph.Action{{Symlink: &graph.Symlink{Target: "../x", Path: "/a/s"}}}, "a/s->../x"},
		{"symlink exists", []graph.Action{{Symlink: &graph.Symlink{Target: "x", Path: "/a/x"}}}, "error: exists"},
		{"rm", []graph.Action{{Rm: &graph.Rm{Path: "/a/x"}}}, "-a/x=x"},
		{"rm -r", []graph.Action{{Rm: &graph.Rm{Path: "/a"}}}, "-a/ -a/b/ -a/b/c=c -a/x=x -a/y=y"},
		{"rm of a symlink", []graph.Action{{Rm: &graph.Rm{Path: "/l"}}}, "-l->a"},
		{"rm below a symlink", []graph.Action{{Rm: &graph.Rm{Path: "/l/x"}}}, "-a/x=x"},
		{"rm by pattern", []graph.Action{{Rm: &graph.Rm{Path: "/*.log", Wildcard: true}}}, "-1.log= -2.log="},
		{"rm of nothing", []graph.Action{{Rm: &graph.Rm{Path: "/a/xx"}}}, `error: not found`},
		{"rm of nothing, allowed", []graph.Action{{Rm: &graph.Rm{Path: "/a/no", AllowNotFound: true}}}, ""},
		{"rm ..", []graph.Action{{Rm: &graph.Rm{Path: "/a/../.."}}}, "error: root directory"},
		{"rm through out stays inside", []graph.Action{{Rm: &graph.Rm{Path: "/out/a/x"}}}, "-a/x=x"},
		{"rm and mkdir again is empty", []graph.Action{{Rm: &graph.Rm{Path: "/a"}}, {Mkdir: &graph.Mkdir{Path: "/a", Mode: 0o755}}}, "-a/b/ -a/b/c=c -a/x=x -a/y=y"},
		{"rm and a file", []graph.Action{{Rm: &graph.Rm{Path: "/a"}}, {Mkfile: &graph.Mkfile{Path: "/a", Data: []byte("f")}}}, "-a/ -a/b/ -a/b/c=c -a/x=x -a/y=y a=f"},
		{"made and removed", []graph.Action{{Mkdir: &graph.Mkdir{Path: "/n", Mode: 0o755}}, {Mkfile: &graph.Mkfile{Path: "/n/f"}}, {Rm: &graph.Rm{Path: "/n"}}}, ""},
		{"written over and removed", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/a/x"}}, {Rm: &graph.Rm{Path: "/a/x"}}}, "-a/x=x"},
		{"a name that is too long", []graph.Action{{Mkfile: &graph.Mkfile{Path: "/" + strings.Repeat("x", 300)}}}, "error: not a file name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range c.actions {
				c.actions[i].Out = graph.None
				if i > 0 {
					c.actions[i].In = i // the result before: there is one input
				}
			}
			c.actions[len(c.actions)-1].Out = 0
			out, err := b.run([]tree.Tree{base}, c.actions...)
			if want, ok := strings.CutPrefix(c.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("got %v, want %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			st := out[0].(*tree.Stack)
			b.commit(st)
			want := b.list(base)
			for _, w := range strings.Fields(c.want) {
				if gone, ok := strings.CutPrefix(w, "-"); ok {
					want = slices.DeleteFunc(want, func(s string) bool { return s == gone })
				} else {
					want = append(want, w)
				}
			}
			got := b.list(st)
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestCopyKeepsHardLinksAndSpecialFiles(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "d/a=a", "d/z/other=o")
	b.ok(os.Link(b.dir+"/d/a", b.dir+"/d/z/a2"))
	b.ok(unix.Mkfifo(b.dir+"/d/fifo", 0o600))
	b.ok(unix.Mknod(b.dir+"/d/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	b.ok(os.Chmod(b.dir+"/d/null", 0o666))
	st, err := b.copied(nil, graph.Copy{Src: "/d", Dest: "/d"})
	b.ok(err)
	x, y := b.stat(st, "/d/a"), b.stat(st, "/d/z/a2")
	if x.Ino != y.Ino || x.Nlink != 2 {
		t.Errorf("hard links: %d and %d, %d names", x.Ino, y.Ino, x.Nlink)
	}
	if s := b.stat(st, "/d/null"); s.Rdev != unix.Mkdev(1, 3) || s.Mode != unix.S_IFCHR|0o666 {
		t.Errorf("device: %+v", s)
	}
	if s := b.stat(st, "/d/fifo"); s.Mode != unix.S_IFIFO|0o600 {
		t.Errorf("fifo: %o", s.Mode)
	}
	// Copies of one file are files of their own; the links between them are those of the source.
	out, err := b.run([]tree.Tree{st},
		graph.Action{In: graph.None, From: 0, Out: graph.None, Copy: &graph.Copy{Src: "/d", Dest: "/one"}},
		graph.Action{In: 1, From: 0, Out: 0, Copy: &graph.Copy{Src: "/d", Dest: "/two"}})
	b.ok(err)
	again := out[0].(*tree.Stack)
	b.commit(again)
	if b.stat(again, "/one/z/other").Ino == b.stat(st, "/d/z/other").Ino {
		t.Error("a copy under another path shares its inode")
	}
	if b.stat(again, "/one/a").Ino == b.stat(again, "/two/a").Ino || b.stat(again, "/two/a").Ino != b.stat(again, "/two/z/a2").Ino {
		t.Error("the copies' links are not the source's")
	}
}

func TestChainsAndOutputs(t *testing.T) {
	b := newFileBed(t)
	base := b.layer(nil, "base=b")
	out, err := b.run([]tree.Tree{base},
		graph.Action{In: 0, Out: 1, Mkfile: &graph.Mkfile{Path: "/one", Data: []byte("1")}},
		graph.Action{In: 1, Out: graph.None, Mkfile: &graph.Mkfile{Path: "/two", Data: []byte("2")}},
		graph.Action{In: 2, From: 1, Out: 0, Copy: &graph.Copy{Src: "/one", Dest: "/copy"}})
	b.ok(err)
	for i, want := range []string{"base=b copy=1 one=1 two=2", "base=b one=1"} {
		st := out[i].(*tree.Stack)
		b.commit(st)
		if got := strings.Join(b.list(st), " "); got != want || len(st.IDs()) != 2 {
			t.Errorf("output %d: %q in %d layers", i, got, len(st.IDs()))
		}
	}
	for name, actions := range map[string][]graph.Action{
		"nothing":   {},
		"no kind":   {{}},
		"forward":   {{In: 1, Mkdir: &graph.Mkdir{Path: "/x"}}},
		"negative":  {{In: -2, Mkdir: &graph.Mkdir{Path: "/x"}}},
		"same out":  {{Mkdir: &graph.Mkdir{Path: "/x"}}, {Mkdir: &graph.Mkdir{Path: "/x"}}},
		"out 1":     {{Out: 1, Mkdir: &graph.Mkdir{Path: "/x"}}},
		"no out":    {{Out: -1, Mkdir: &graph.Mkdir{Path: "/x"}}},
		"bad user":  {{Mkdir: &graph.Mkdir{Path: "/x", Owner: &graph.Owner{User: "u", UserIn: 9}}}},
		"bad uid":   {{Mkdir: &graph.Mkdir{Path: "/x", Owner: &graph.Owner{UID: -5}}}},
		"bad pivot": {{From: 7, Copy: &graph.Copy{Src: "/x"}}},
	} {
		if _, err := b.run([]tree.Tree{base}, actions...); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileUserFiles(t *testing.T) {
	b := newFileBed(t)
	for name, fill := range map[string]func(dir string){
		"fifo":     func(d string) { b.ok(unix.Mkfifo(d+"/etc/passwd", 0o644)) },
		"zero":     func(d string) { b.put(d, "etc/passwd=->/dev/zero") },
		"loop":     func(d string) { b.put(d, "etc/passwd=->passwd") },
		"huge":     func(d string) { b.put(d, "etc/passwd="); b.ok(os.Truncate(d+"/etc/passwd", maxUserFile+1)) },
		"out":      func(d string) { b.put(d, "etc/passwd=->../../../../../../etc/passwd") },
		"zero dev": func(d string) { b.ok(unix.Mknod(d+"/etc/passwd", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) },
	} {
		base := b.layer(nil, "etc/")
		fill(b.s.LayerDir(base.IDs()[0]))
		out, err := b.run([]tree.Tree{base}, graph.Action{Mkdir: &graph.Mkdir{Path: "/x", Mode: 0o755, Owner: &graph.Owner{User: "root", GID: graph.None}}})
		if err == nil { // a link that leads nowhere within the tree is a tree without users
			st := out[0].(*tree.Stack)
			if s := b.stat(st, "/x"); s.Uid != 0 || name != "zero" && name != "out" && name != "loop" {
				t.Errorf("%s: made with %d", name, s.Uid)
			}
			st.Discard()
		}
	}
}

func TestSecondCopyTakesWhatIsUnchanged(t *testing.T) {
	b := newFileBed(t)
	const n = 300 // enough to be worth sharing
	for i := range n {
		b.put(b.dir, "d/f"+strconv.Itoa(i)+"="+strconv.Itoa(i))
	}
	b.put(b.dir, "d/", "d/w=w")
	c := graph.Copy{Src: "/d", Dest: "/d", Owner: &graph.Owner{UID: 5, GID: 5}}
	first, err := b.copied(nil, c)
	b.ok(err)
	b.put(b.dir, "d/f3=three")
	b.ok(os.Chmod(b.dir+"/d/f4", 0o755))
	b.ok(os.Chtimes(b.dir+"/d/f5", time.Unix(5, 0), time.Unix(5, 0)))
	b.ok(os.Remove(b.dir + "/d/f6"))
	second, err := b.copied(nil, c)
	b.ok(err)
	for i := range n {
		p := "/d/f" + strconv.Itoa(i)
		if i == 6 {
			if _, _, ok := second.Lookup(p, false); ok {
				t.Error("a removed file is there")
			}
			continue
		}
		if same := b.stat(first, p).Ino == b.stat(second, p).Ino; same != (i < 3 || i > 5) {
			t.Errorf("%s: shared with the first: %v", p, same)
		}
	}
	host, _, _ := second.Lookup("/d/f3", false)
	if data, _ := os.ReadFile(host); string(data) != "three" {
		t.Errorf("the changed file is %q", data)
	}
	if s := b.stat(second, "/d/f4"); s.Mode&0o777 != 0o755 || s.Uid != 5 {
		t.Errorf("mode %o, uid %d", s.Mode, s.Uid)
	}
	if s := b.stat(second, "/d/f5"); s.Mtim.Nano() != 5e9 {
		t.Errorf("mtime %d", s.Mtim.Nano())
	}
}

// What an action wrote over a copied file must not be taken for the copy the next time.
func TestLineageOfOverwrittenFiles(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "d/x=copied", "d/y=y")
	for range 3 {
		out, err := b.run([]tree.Tree{b.local()},
			graph.Action{In: graph.None, From: 0, Out: 1, Copy: &graph.Copy{Src: "/d", Dest: "/d"}},
			graph.Action{In: 1, Out: 0, Mkfile: &graph.Mkfile{Path: "/d/x", Data: []byte("made"), Mode: 0o644}})
		b.ok(err)
		for i, want := range []string{"d/ d/x=made d/y=y", "d/ d/x=copied d/y=y"} {
			st := out[i].(*tree.Stack)
			b.commit(st)
			if got := strings.Join(b.list(st), " "); got != want {
				t.Errorf("output %d is %q", i, got)
			}
		}
	}
}

func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	w := tar.NewWriter(gz)
	for _, f := range files {
		name, data, _ := strings.Cut(f, "=")
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Uid: 9, Gid: 9, Typeflag: tar.TypeReg}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(data))
	}
	w.Close()
	gz.Close()
	return buf.Bytes()
}

func TestUnpack(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "plain.tar=not an archive", "link.tgz=->a.tgz")
	b.ok(os.WriteFile(b.dir+"/a.tgz", tarOf(t, "d/", "d/f=f", "lib/so=so", ".wh.keep=w"), 0o644))
	base := b.layer(nil, "usr/lib/old=o", "lib=->usr/lib", "keep=k")
	st, err := b.copied(base, graph.Copy{Src: "/a.tgz", Dest: "/", Unpack: true, CreateDest: true})
	b.ok(err)
	if got, want := strings.Join(b.list(st), " "), ".wh.keep=w d/ d/f=f keep=k lib->usr/lib usr/ usr/lib/ usr/lib/old=o usr/lib/so=so"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if s := b.stat(st, "/d/f"); s.Uid != 9 {
		t.Errorf("uid %d", s.Uid)
	}
	st, err = b.copied(base, graph.Copy{Src: "/*", Dest: "/n/", Unpack: true, CreateDest: true, Wildcard: true, FollowSymlink: true, Owner: &graph.Owner{UID: 3, GID: 4}})
	b.ok(err)
	if got, want := strings.Join(b.list(st), " "), "keep=k lib->usr/lib n/ n/.wh.keep=w n/d/ n/d/f=f n/lib/ n/lib/so=so n/plain.tar=not an archive usr/ usr/lib/ usr/lib/old=o"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if s := b.stat(st, "/n/d/f"); s.Uid != 3 || s.Gid != 4 {
		t.Errorf("owner %d:%d", s.Uid, s.Gid)
	}
	b.ok(os.WriteFile(b.dir+"/evil.tgz", tarOf(t, "../../../../evil=x"), 0o644))
	if _, err := b.copied(base, graph.Copy{Src: "/evil.tgz", Dest: "/", Unpack: true}); err == nil {
		t.Error("an archive that leads out is accepted")
	}
}

// The reader that told whether a file is an archive may still be reading when the one that unpacks it begins.
func TestUnpackReadsFromTheStart(t *testing.T) {
	b := newFileBed(t)
	z, err := gzip.NewReader(bytes.NewReader(tarOf(t, "big="+strings.Repeat("x", 4<<20), "end=e")))
	b.ok(err)
	plain, err := io.ReadAll(z)
	b.ok(err)
	b.ok(os.WriteFile(b.dir+"/a.tar", plain, 0o644))
	for range 30 {
		st, err := b.copied(nil, graph.Copy{Src: "/a.tar", Dest: "/", Unpack: true, CreateDest: true})
		b.ok(err)
		if s := b.stat(st, "/end"); s.Size != 1 {
			t.Fatalf("the last file has %d bytes", s.Size)
		}
	}
}

func TestCancelledCopyLeavesNothing(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "small=s")
	b.ok(os.WriteFile(b.dir+"/big", nil, 0o644))
	b.ok(os.Truncate(b.dir+"/big", 64<<30)) // a sparse file that nobody copies to the end
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("the client left")
	done := make(chan error)
	scratch := tree.NewStack(b.s, nil)
	defer scratch.Release()
	l := b.local()
	go func() {
		r := &FileRunner{Store: b.s}
		_, err := r.Run(ctx, &graph.File{Actions: []graph.Action{{In: 0, From: 1, Copy: &graph.Copy{Src: "/", Dest: "/"}}}}, []tree.Tree{scratch, l}, FileEnv{})
		done <- err
	}()
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Fatalf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(b.s.Root(), "snapshots"))
	b.ok(err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestChangedSourceFails(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "f=before")
	l := b.local()
	_, err := l.Content(context.Background(), *graph.All())
	b.ok(err)
	b.ok(os.WriteFile(b.dir+"/f", []byte("after!"), 0o644))
	_, err = b.run([]tree.Tree{nil, l}, graph.Action{In: 0, From: 1, Copy: &graph.Copy{Src: "/f", Dest: "/f"}})
	if diag.KindOf(err) != diag.Conflict {
		t.Errorf("a file that is not what was hashed: %v", err)
	}
}

func TestLocalAsBase(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "x=x", "d/y=y")
	out, err := b.run([]tree.Tree{b.local()}, graph.Action{In: 0, Mkfile: &graph.Mkfile{Path: "/d/new", Data: []byte("n")}})
	b.ok(err)
	st := out[0].(*tree.Stack)
	b.commit(st)
	if got := strings.Join(b.list(st), " "); got != "d/ d/new=n d/y=y x=x" {
		t.Errorf("got %q", got)
	}
}

// A copy that was made before says which files it has otherwise now.
func TestCopyTellsChanges(t *testing.T) {
	b := newFileBed(t)
	b.put(b.dir, "a=1", "b=1", "c=1", "d/e=1", "d/f=1")
	scratch := tree.NewStack(b.s, nil)
	copyAll := func() {
		t.Helper()
		_, err := b.copied(scratch, graph.Copy{Src: "/", Dest: "/", DirContents: true})
		b.ok(err)
	}
	copyAll()
	if len(b.changes) != 0 {
		t.Errorf("the first copy says %q", b.changes)
	}
	b.put(b.dir, "a=2", "c=2", "d/new=1")
	b.ok(os.Chmod(filepath.Join(b.dir, "b"), 0o755))
	b.ok(os.Remove(filepath.Join(b.dir, "d/e")))
	copyAll()
	want := "a (content), b (mode), c (content), d/e (removed), 1 more"
	if len(b.changes) != 1 || b.changes[0] != want {
		t.Errorf("the second copy says %q, want %q", b.changes, want)
	}
}
