package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// attack is a tar that tries something. If word is empty it must be unpacked to want; else the error must have it.
type attack struct {
	name string
	make func(m *maker) *maker
	word string
	kind diag.Kind // Invalid if word is set and kind is 0
	want map[string]string
}

func attacks() []attack {
	long := strings.Repeat("n", 256)
	deep := strings.TrimSuffix(strings.Repeat("d/", 1500), "/")
	b256 := func(s string) string { return "\x80" + strings.Repeat("\x00", 7-len(s)) + s }
	list := []attack{
		{name: "dotdot", make: func(m *maker) *maker { return m.file("../canary", "x") }, word: "leads out"},
		{name: "dotdot deeper", make: func(m *maker) *maker { return m.file("a/../../canary", "x") }, word: "leads out"},
		{name: "dotdot after dot", make: func(m *maker) *maker { return m.file("./../canary", "x") }, word: "leads out"},
		{name: "dotdot alone", make: func(m *maker) *maker { return m.dir("..") }, word: "leads out"},
		{name: "absolute dotdot", make: func(m *maker) *maker { return m.file("/../canary", "x") }, word: "leads out"},
		{name: "many slashes", make: func(m *maker) *maker { return m.file("////../canary", "x") }, word: "leads out"},
		{name: "absolute stays inside", make: func(m *maker) *maker { return m.file("/etc/x", "x") }, want: map[string]string{"etc": "755 dir", "etc/x": "644 file x"}},
		{name: "symlink dotdot", make: func(m *maker) *maker { return m.link("../evil", "x") }, word: "leads out"},
		{name: "hard link name dotdot", make: func(m *maker) *maker { return m.file("f", "x").hard("../evil", "f") }, word: "leads out"},
		{name: "hard link target dotdot", make: func(m *maker) *maker { return m.hard("f", "../canary") }, word: "leads out"},
		{name: "hard link target dotdot deeper", make: func(m *maker) *maker { return m.hard("f", "x/../../../canary") }, word: "leads out"},
		{name: "NUL in PAX path", make: func(m *maker) *maker {
			return m.raw("PaxHeaders", 'x', map[int]string{124: "00000000017\x00"}).block("15 path=ok\x00bad\n").raw("f", '0', nil)
		}, word: "not a valid tar"},
		{name: "symlink then write", make: func(m *maker) *maker { return m.link("l", "../../canary.d").file("l/canary", "dead") }, want: map[string]string{"l": "-> ../../canary.d", "canary.d": "755 dir", "canary.d/canary": "644 file dead"}},
		{name: "absolute symlink then write", make: func(m *maker) *maker { return m.link("l", "/tmp").file("l/x", "1") }, want: map[string]string{"l": "-> /tmp", "tmp": "755 dir", "tmp/x": "644 file 1"}},
		{name: "symlink to root then write", make: func(m *maker) *maker { return m.link("l", "/").file("l/x", "1") }, want: map[string]string{"l": "-> /", "x": "644 file 1"}},
		{name: "symlink to the parent then dir", make: func(m *maker) *maker { return m.link("l", "..").dir("l/canary.d") }, want: map[string]string{"l": "-> ..", "canary.d": "755 dir"}},
		{name: "symlink is replaced, not written through", make: func(m *maker) *maker { return m.link("f", "../canary").file("f", "new") }, want: map[string]string{"f": "644 file new"}},
		{name: "absolute symlink is replaced", make: func(m *maker) *maker { return m.link("f", "/etc/passwd").file("f", "new") }, want: map[string]string{"f": "644 file new"}},
		{name: "directory entry over a symlink", make: func(m *maker) *maker { return m.link("d", "../../canary.d").dir("d").file("d/canary", "in") }, want: map[string]string{"d": "755 dir opaque", "d/canary": "644 file in"}},
		{name: "symlink chain", make: func(m *maker) *maker { return m.link("a", "b").link("b", "c").link("c", "../..").file("a/canary", "x") }, want: map[string]string{"a": "-> b", "b": "-> c", "c": "-> ../..", "canary": "644 file x"}},
		{name: "symlink loop", make: func(m *maker) *maker { return m.link("a", "b").link("b", "a").file("a/x", "x") }, word: "more than 40 symlinks"},
		{name: "symlink to itself", make: func(m *maker) *maker { return m.link("a", "a").file("a/x", "x") }, word: "more than 40 symlinks"},
		{name: "symlink into itself", make: func(m *maker) *maker { return m.link("a", "a/b").file("a/x", "x") }, word: "more than 40 symlinks"},
		{name: "proc magic link", make: func(m *maker) *maker { return m.link("p", "/proc/self/root/tmp").file("p/x", "x") }, want: map[string]string{"p": "-> /proc/self/root/tmp", "proc": "755 dir", "proc/self": "755 dir", "proc/self/root": "755 dir", "proc/self/root/tmp": "755 dir", "proc/self/root/tmp/x": "644 file x"}},
		{name: "hard link to an escaping symlink, then write", make: func(m *maker) *maker { return m.link("l", "../canary").hard("h", "l").file("h", "dead") }, want: map[string]string{"l": "-> ../canary", "h": "644 file dead"}},
		{name: "hard link through an escaping symlink", make: func(m *maker) *maker { return m.link("l", "..").hard("h", "l/canary") }, want: map[string]string{"l": "-> ..", "h": "0 file "}},
		{name: "hard link to a directory", make: func(m *maker) *maker { return m.dir("d").hard("h", "d") }, word: "a hard link to the directory"},
		{name: "hard link to the root", make: func(m *maker) *maker { return m.hard("h", "/") }, word: "a hard link to"},
		{name: "hard link to itself", make: func(m *maker) *maker { return m.hard("h", "h") }, word: "link to itself"},
		{name: "hard link replaces its target's directory", make: func(m *maker) *maker { return m.file("d/f", "x").hard("d", "d/f") }, word: "it would replace"},
		{name: "hard link to a whiteout", make: func(m *maker) *maker { return m.file(".wh.f", "").hard("g", "f") }, word: "which this layer deletes"},
		{name: "hard link into an opaque directory", make: func(m *maker) *maker { return m.file("d/.wh..wh..opq", "").hard("g", "d/f") }, word: "which is not there"},
		{name: "hard link below a file", make: func(m *maker) *maker { return m.file("f", "x").hard("g", "f/x") }, word: "is not a directory"},
		{name: "root as a file", make: func(m *maker) *maker { return m.file(".", "x") }, word: "the root must be a directory"},
		{name: "root as a symlink", make: func(m *maker) *maker { return m.link(".", "/tmp") }, word: "the root must be a directory"},
		{name: "root as a hard link", make: func(m *maker) *maker { return m.file("f", "x").hard(".", "f") }, word: "a hard link to"},
		{name: "parent is a file", make: func(m *maker) *maker { return m.file("f", "x").file("f/g", "x") }, word: "is not a directory"},
		{name: "parent is a fifo", make: func(m *maker) *maker { return m.dev(tar.TypeFifo, "f", 0, 0).file("f/g", "x") }, word: "is not a directory"},
		{name: "fifo is replaced, not opened", make: func(m *maker) *maker { return m.dev(tar.TypeFifo, "f", 0, 0).file("f", "x") }, want: map[string]string{"f": "644 file x"}},
		{name: "whiteout of nothing", make: func(m *maker) *maker { return m.file(".wh.", "") }, word: "whiteout of nothing"},
		{name: "whiteout of the directory", make: func(m *maker) *maker { return m.file("d/.wh..", "") }, word: "whiteout of nothing"},
		{name: "whiteout of the parent", make: func(m *maker) *maker { return m.file("d/.wh...", "") }, word: "whiteout of nothing"},
		{name: "file in a whiteout", make: func(m *maker) *maker { return m.file(".wh.d/f", "x") }, word: "inside of a whiteout"},
		{name: "file in a deep whiteout", make: func(m *maker) *maker { return m.file("a/.wh.d/b/f", "x") }, word: "inside of a whiteout"},
		{name: "whiteout through an escaping symlink", make: func(m *maker) *maker { return m.link("l", "..").file("l/.wh.canary", "") }, want: map[string]string{"l": "-> ..", "canary": "whiteout"}},
		{name: "opaque through an escaping symlink", make: func(m *maker) *maker { return m.link("l", "../..").file("l/canary.d/.wh..wh..opq", "") }, want: map[string]string{"l": "-> ../..", "canary.d": "755 dir opaque"}},
		{name: "opaque on a file", make: func(m *maker) *maker { return m.file("f", "x").file("f/.wh..wh..opq", "") }, word: "is not a directory"},
		{name: "directory with a whiteout's name", make: func(m *maker) *maker { return m.dir("d/.wh.x") }, want: map[string]string{"d": "755 dir", "d/x": "whiteout"}},
		{name: "hard link with a whiteout's name", make: func(m *maker) *maker { return m.file("f", "x").hard(".wh.g", "f") }, want: map[string]string{"f": "644 file x", "g": "whiteout"}},
		{name: "aufs droppings", make: func(m *maker) *maker { return m.file(".wh..wh.aufs", "x").dir(".wh..wh.orph") }, want: map[string]string{}},
		{name: "char device 0:0", make: func(m *maker) *maker { return m.dev(tar.TypeChar, "etc", 0, 0) }, word: "character device 0:0"},
		{name: "char device that wraps to 0:0", make: func(m *maker) *maker {
			return m.raw("c", '3', map[int]string{329: b256("\x10\x00"), 337: "0000000\x00"})
		}, word: "out of range"},
		{name: "device minor that wraps", make: func(m *maker) *maker {
			return m.raw("c", '3', map[int]string{329: "0000000\x00", 337: b256("\x10\x00\x00")})
		}, word: "out of range"},
		{name: "negative device", make: func(m *maker) *maker {
			return m.raw("c", '3', map[int]string{329: "\xff\xff\xff\xff\xff\xff\xff\xff", 337: "0000001\x00"})
		}, word: "out of range"},
		{name: "block device out of range", make: func(m *maker) *maker {
			return m.raw("c", '4', map[int]string{329: b256("\x01\x00\x00"), 337: "0000001\x00"})
		}, word: "out of range"},
		{name: "uid 2^32", make: func(m *maker) *maker { return m.add(tar.Header{Name: "f", Uid: 1 << 32}, "x") }, word: "uid 4294967296"},
		{name: "uid -1 of chown", make: func(m *maker) *maker { return m.add(tar.Header{Name: "f", Uid: 1<<32 - 1}, "x") }, word: "uid 4294967295"},
		{name: "gid -1 of chown", make: func(m *maker) *maker { return m.add(tar.Header{Name: "f", Gid: 1<<32 - 1}, "x") }, word: "gid 4294967295"},
		{name: "gid 2^40", make: func(m *maker) *maker { return m.add(tar.Header{Name: "f", Gid: 1 << 40}, "x") }, word: "gid"},
		{name: "negative uid", make: func(m *maker) *maker { return m.raw("f", '0', map[int]string{108: "\xff\xff\xff\xff\xff\xff\xff\xff"}) }, word: "uid -1"},
		{name: "negative size", make: func(m *maker) *maker {
			return m.raw("f", '0', map[int]string{124: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"})
		}, word: "not a valid tar"},
		{name: "size 2^80", make: func(m *maker) *maker {
			return m.raw("f", '0', map[int]string{124: "\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"})
		}, word: "not a valid tar"},
		{name: "size 2^62", make: func(m *maker) *maker {
			return m.raw("f", '0', map[int]string{124: "\x80\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00"})
		}, word: "are larger than", kind: diag.Exhausted},
		{name: "sizes that overflow together", make: func(m *maker) *maker {
			return m.file("g", "x").raw("f", '0', map[int]string{124: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"})
		}, word: "are larger than", kind: diag.Exhausted},
		{name: "PAX size larger than the stream", make: func(m *maker) *maker {
			return m.raw("PaxHeaders", 'x', map[int]string{124: "00000000021\x00"}).block("17 size=99999999\n").raw("f", '0', nil)
		}, word: "cut off"},
		{name: "PAX size not a number", make: func(m *maker) *maker {
			return m.raw("PaxHeaders", 'x', map[int]string{124: "00000000013\x00"}).block("11 size=-1\n").raw("f", '0', nil)
		}, word: "not a valid tar"},
		{name: "1 TiB sparse", make: func(m *maker) *maker {
			return m.raw("PaxHeaders", 'x', map[int]string{124: fmt.Sprintf("%011o\x00", len(sparsePax))}).block(sparsePax).
				raw("f", '0', map[int]string{124: "00000001000\x00"}).block("0\n")
		}, word: "are larger than", kind: diag.Exhausted},
		{name: "sparse map that overlaps", make: func(m *maker) *maker {
			p := paxRecords("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", "10", "GNU.sparse.numblocks", "2", "GNU.sparse.map", "0,8,4,8")
			return m.raw("PaxHeaders", 'x', map[int]string{124: fmt.Sprintf("%011o\x00", len(p))}).block(p).raw("f", '0', map[int]string{124: "00000000020\x00"}).block("0123456789abcdef")
		}, word: "not a valid tar"},
		{name: "name of 256 bytes", make: func(m *maker) *maker { return m.file(long, "x") }, word: "file name too long"},
		{name: "directory of 256 bytes", make: func(m *maker) *maker { return m.file("a/"+long+"/f", "x") }, word: "file name too long"},
		{name: "path of 5,000 bytes", make: func(m *maker) *maker { return m.file(strings.Repeat("0123456789/", 500)+"f", "x") }, word: "at most 4095"},
		{name: "depth 1,500", make: func(m *maker) *maker { return m.file(deep, "x") }, word: "directories deep", kind: diag.Exhausted},
		{name: "path grows through symlinks", make: func(m *maker) *maker {
			part := strings.Repeat("n", 200)
			target := strings.Repeat(part+"/", 19)
			m.dir("d").link("l", target+"m").link(target+"m", target+"k")
			return m.file("l/x", "x")
		}, word: "a path of more than"},
		{name: "symlink of 5,000 bytes", make: func(m *maker) *maker { return m.link("l", strings.Repeat("x", 5000)) }, word: "a symlink to"},
		{name: "symlink to nothing", make: func(m *maker) *maker { return m.link("l", "") }, word: "a symlink to"},
		{name: "unknown type", make: func(m *maker) *maker { return m.raw("f", 'Q', nil) }, word: "are unknown"},
		{name: "GNU volume header", make: func(m *maker) *maker { return m.raw("f", 'V', nil) }, word: "are unknown"},
		{name: "bad checksum", make: func(m *maker) *maker { return m.block("garbage" + strings.Repeat("x", 600)) }, word: "not a valid tar"},
		{name: "symlink swapped for a directory in between", make: func(m *maker) *maker {
			return m.dir("d").file("d/a", "1").link("d", "../../canary.d").file("d/canary", "dead")
		}, want: map[string]string{"d": "-> ../../canary.d", "canary.d": "755 dir", "canary.d/canary": "644 file dead"}},
		{name: "directory in use is removed and made again", make: func(m *maker) *maker {
			return m.dir("d").file("d/a", "1").file("d", "f").dir("d").file("d/b", "2")
		}, want: map[string]string{"d": "755 dir opaque", "d/b": "644 file 2"}},
		{name: "alias of a replaced symlink", make: func(m *maker) *maker {
			return m.dir("x").dir("y").link("l", "x").file("l/1", "1").link("l", "y").file("l/2", "2")
		}, want: map[string]string{"x": "755 dir", "y": "755 dir", "x/1": "644 file 1", "y/2": "644 file 2", "l": "-> y"}},
		{name: "second archive after the end", make: func(m *maker) *maker {
			m.file("a", "1")
			m.buf.Write(make([]byte, 1024))
			return m.file("b", "2")
		}, want: map[string]string{"a": "644 file 1"}},
	}
	return list
}

func paxRecords(kv ...string) string {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		rec := " " + kv[i] + "=" + kv[i+1] + "\n"
		n := len(rec) + 2
		if n >= 100 {
			n++
		} else if n < 10 {
			n--
		}
		fmt.Fprintf(&b, "%d%s", n, rec)
	}
	return b.String()
}

var sparsePax = paxRecords("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "big", "GNU.sparse.realsize", "1099511627776")

func TestHostileTars(t *testing.T) {
	needRoot(t)
	list := attacks()
	if len(list) < 60 {
		t.Errorf("only %d attacks", len(list))
	}
	for _, at := range list {
		t.Run(at.name, func(t *testing.T) {
			c := newCage(t)
			_, err := Apply(context.Background(), bytes.NewReader(at.make(&maker{}).end()), c.dir, ApplyOptions{})
			c.check(t)
			if at.word != "" {
				kind := at.kind
				if kind == 0 {
					kind = diag.Invalid
				}
				wantKind(t, err, kind, at.word)
				return
			}
			must(t, err)
			wantTree(t, c.dir, at.want)
		})
	}
}

// The same tars into a plain directory, with both meanings of whiteouts: nothing outside may change.
func TestHostileTarsPlain(t *testing.T) {
	needRoot(t)
	for _, form := range []Form{Remove, Literal} {
		for _, at := range attacks() {
			t.Run(fmt.Sprint(form, " ", at.name), func(t *testing.T) {
				c := newCage(t)
				must(t, os.Symlink("../../canary.d", filepath.Join(c.dir, "old")))
				_, _ = Apply(context.Background(), bytes.NewReader(at.make(&maker{}).end()), c.dir, ApplyOptions{Form: form, KeepRoot: form == Literal})
				c.check(t)
			})
		}
	}
}

func TestHostileXattrs(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"trusted.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.overlay.opaque", "user.overlay.opaque", "security.selinux", "security.evm", "system.nfs4_acl"} {
		dir := t.TempDir()
		m := (&maker{}).xattr("f", name, "y").add(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{xattrRecord + name: "y"}}, "")
		apply(t, dir, m.end())
		for _, p := range []string{"f", "d"} {
			if got := xattrsOf(t, filepath.Join(dir, p)); len(got) != 0 {
				t.Errorf("%s: %s was set: %v", name, p, got)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	many := &maker{}
	for i := range 50 {
		many.file(fmt.Sprintf("f%d", i), "x")
	}
	implied := (&maker{}).file(strings.Repeat("d/", 60)+"f", "x")
	big := (&maker{}).file("f", strings.Repeat("x", 100_000))
	for _, c := range []struct {
		name string
		m    *maker
		opt  ApplyOptions
		word string
	}{
		{"entries", many, ApplyOptions{MaxEntries: 49}, "too many entries"},
		{"implied directories", implied, ApplyOptions{MaxEntries: 60}, "too many entries"},
		{"bytes", big, ApplyOptions{MaxBytes: 99_999}, "larger than 99999 bytes"},
		{"bytes of headers", many, ApplyOptions{MaxBytes: 40_000}, "larger than 40000 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opt.Unprivileged = os.Geteuid() != 0
			_, err := Apply(context.Background(), bytes.NewReader(c.m.end()), t.TempDir(), c.opt)
			wantKind(t, err, diag.Exhausted, c.word)
		})
	}
	opt := ApplyOptions{MaxEntries: 50, Unprivileged: os.Geteuid() != 0}
	if _, err := Apply(context.Background(), bytes.NewReader(many.end()), t.TempDir(), opt); err != nil {
		t.Errorf("50 entries of 50: %v", err)
	}
}

// Every prefix of a tar either is refused as cut off, or ends between two entries.
func TestTruncatedTar(t *testing.T) {
	data := (&maker{}).dir("d").file("d/f", strings.Repeat("x", 1000)).link("l", "d").end()
	for n := 0; n < len(data); n += 100 {
		_, err := Apply(context.Background(), bytes.NewReader(data[:n]), t.TempDir(), ApplyOptions{Unprivileged: os.Geteuid() != 0})
		if n%tarBlock != 0 && n < 2560 {
			wantKind(t, err, diag.Invalid, "cut off")
		}
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Apply(ctx, bytes.NewReader((&maker{}).file("f", "x").end()), t.TempDir(), ApplyOptions{})
	if diag.KindOf(err) != diag.Canceled {
		t.Errorf("got %v", err)
	}
}
