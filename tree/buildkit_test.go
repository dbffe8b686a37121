package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// header is what BuildKit hashes of a file before its content.
func header(mode, size int, typ, link string) string {
	return fmt.Sprintf("namemode%duid0gid0size%dtypeflag%slinkname%sunamegnamedevmajor0devminor0", mode, size, typ, link)
}

func TestBuildKitSum(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"d", "d/e"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"d/a.txt": "a", "d/b.md": "bb", "d/e/c.txt": "", "z.txt": "z"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a.txt", filepath.Join(dir, "d/link")); err != nil {
		t.Fatal(err)
	}
	sum := func(s string) string { return digest.FromString(s).String() }
	a, b, c := sum(header(0o644, 1, "0", "")+"a"), sum(header(0o644, 2, "0", "")+"bb"), sum(header(0o644, 0, "0", ""))
	z, link, plain := sum(header(0o644, 1, "0", "")+"z"), sum(header(0o777, 0, "2", "a.txt")), sum(header(0o755, 0, "5", ""))
	e := sum("\x00" + plain + "\x00c.txt" + c)
	d := sum("\x00" + plain + "\x00a.txt" + a + "\x00b.md" + b + "\x00e" + e + "\x00link" + link)
	for name, x := range map[string]struct {
		sel  graph.Select
		want string
	}{
		"file":               {graph.Select{Path: "d/a.txt"}, a},
		"link":               {graph.Select{Path: "/d/link"}, link},
		"link, followed":     {graph.Select{Path: "/d/link", Follow: true}, a},
		"directory":          {graph.Select{Path: "/d/"}, d},
		"root":               {graph.Select{Path: "/"}, sum("\x00" + sum("") + "\x00d" + d + "\x00z.txt" + z)},
		"wildcard":           {graph.Select{Path: "/d/*.*", Wildcard: true}, sum("\x00a.txt" + a + "\x00b.md" + b)},
		"one of a wildcard":  {graph.Select{Path: "/d/*.md", Wildcard: true}, sum("\x00b.md" + b)},
		"none of a wildcard": {graph.Select{Path: "/d/*.c", Wildcard: true}, sum("")},
		"excluded":           {graph.Select{Path: "/d", Exclude: []string{"*.md", "e", "link"}}, sum("\x00" + plain + "\x00a.txt" + a)},
		"included":           {graph.Select{Path: "/", Include: []string{"d/e/c.txt"}}, sum("\x00d" + plain + "\x00d\x00e" + plain + "\x00d\x00e\x00c.txt" + c)},
	} {
		l := NewLocal(nil, session.Dir{Path: dir}, &graph.Local{})
		f, err := l.Files()
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.BuildKitSum(t.Context(), x.sel)
		if err != nil || got.String() != x.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
		l.Release()
	}
}

// Attributes of a client's files count as they do in BuildKit's digests: a cache must not take one file for another.
func TestBuildKitSumOfAttributes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"d/a": "a"})
	for name, attrs := range map[string][]string{"d": {"user.c"}, "d/a": {"user.b", "user.a", "user.overlay.opaque", "trusted.x"}} {
		for _, key := range attrs {
			check(t, unix.Lsetxattr(filepath.Join(dir, name), key, []byte("1"), 0))
		}
	}
	sum := func(s string) string { return digest.FromString(s).String() }
	a := sum(header(0o644, 1, "0", "") + "user.a1user.b1" + "a")
	want := sum("\x00" + sum(header(0o755, 0, "5", "")+"user.c1") + "\x00a" + a)
	l := NewLocal(nil, session.Dir{Path: dir}, &graph.Local{})
	defer l.Release()
	f, err := l.Files()
	check(t, err)
	got, err := f.BuildKitSum(t.Context(), graph.Select{Path: "/d"})
	if err != nil || got.String() != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
