package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is a file of a torture project's context.
type node struct {
	dir      bool
	link     string // a symlink's target
	hard     string // the path whose inode this name shares
	archive  int    // which of the archives of archiveOf the file is; 0 = none
	text     string // "big" stands for much of it
	mode     uint32
	uid, gid int
	mtime    int64
	cap      byte   // the capability in its file capabilities; 0 = none
	user     string // the attribute user.x; "" = none
}

// step is one line of a torture project's Dockerfile. Its id stays through edits, for shrinking.
type step struct {
	id   int
	text string
}

// project is a build: a Dockerfile, a context, arguments. Edits make new projects; a project never changes.
type project struct {
	nodes map[string]node
	steps []step
	arg   string // --build-arg A=
}

func (p *project) clone() *project {
	return &project{nodes: maps.Clone(p.nodes), steps: slices.Clone(p.steps), arg: p.arg}
}

func (p *project) dockerfile() string {
	var b strings.Builder
	for _, s := range p.steps {
		b.WriteString(s.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// String is what a person needs to build the project by hand.
func (p *project) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s--build-arg A=%s\n", p.dockerfile(), p.arg)
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		n := p.nodes[name]
		fmt.Fprintf(&b, "  %-8s %04o %d:%d mtime=%d", name, n.mode, n.uid, n.gid, n.mtime)
		switch {
		case n.dir:
			b.WriteString(" directory")
		case n.link != "":
			fmt.Fprintf(&b, " -> %s", n.link)
		case n.hard != "":
			fmt.Fprintf(&b, " is a hard link of %s", n.hard)
		case n.archive != 0:
			fmt.Fprintf(&b, " archive %d", n.archive)
		default:
			fmt.Fprintf(&b, " %q cap=%d user.x=%q", n.text, n.cap, n.user)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// inode is the node that a name leads to: the name's own, or that of the name that it is a hard link of.
func (p *project) inode(name string) node {
	n := p.nodes[name]
	if n.hard == "" {
		return n
	}
	first, ok := p.nodes[n.hard]
	if !ok || first.hard != "" || first.dir || first.link != "" {
		n.hard = ""
		return n
	}
	return first
}

// put makes the directory hold the project's context. What is the same as in the project before stays as it is, so that
// what the engine remembers of a file is put to the test.
func (p *project) put(t *testing.T, dir string, before *project) {
	t.Helper()
	var err error
	try := func(e error) { err = errors.Join(err, e) }
	same := func(name string) bool {
		if before == nil {
			return false
		}
		a, ok := before.nodes[name]
		return ok && a == p.nodes[name] && before.inode(name) == p.inode(name)
	}
	if before != nil {
		for _, name := range slices.Backward(slices.Sorted(maps.Keys(before.nodes))) {
			n, ok := p.nodes[name]
			inPlace := ok && !n.dir && before.nodes[name].hard == "" && n.hard == "" && n.link == "" && before.nodes[name].link == "" && !before.nodes[name].dir
			switch {
			case same(name), n.dir && before.nodes[name].dir:
			case inPlace && !before.linked(name): // written into the inode that is there
			default:
				try(os.RemoveAll(filepath.Join(dir, name)))
			}
		}
	}
	names := slices.Sorted(maps.Keys(p.nodes))
	for _, name := range names {
		if n := p.nodes[name]; n.dir {
			try(os.MkdirAll(filepath.Join(dir, name), 0o755))
		}
	}
	for _, links := range []bool{false, true} { // what hard links lead to comes first
		for _, name := range names {
			n := p.nodes[name]
			hard := n.hard != "" && p.inode(name) != n
			if _, e := os.Lstat(filepath.Join(dir, name)); n.dir || hard != links || same(name) && e == nil {
				continue
			}
			if hard {
				try(os.Link(filepath.Join(dir, n.hard), filepath.Join(dir, name)))
				continue
			}
			try(n.write(filepath.Join(dir, name)))
		}
	}
	for _, name := range slices.Backward(names) { // from below, since each change touches the directory above
		if n := p.nodes[name]; n.dir {
			try(n.attributes(filepath.Join(dir, name)))
		}
	}
	try(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(p.dockerfile()), 0o644))
	if err != nil {
		t.Fatalf("the project\n%scannot be written: %v", p, err)
	}
}

// linked reports whether a hard link of the name exists.
func (p *project) linked(name string) bool {
	for _, n := range p.nodes {
		if n.hard == name {
			return true
		}
	}
	return false
}

func (n node) write(path string) error {
	if n.link != "" {
		_ = os.Remove(path)
		return errors.Join(os.Symlink(n.link, path), n.attributes(path))
	}
	data := []byte(n.text)
	if n.text == "big" {
		data = bytes.Repeat([]byte("big"), 5000)
	}
	if n.archive != 0 {
		data = archiveOf(n.archive)
	}
	return errors.Join(os.WriteFile(path, data, 0o644), n.attributes(path))
}

func (n node) attributes(path string) error {
	err := os.Lchown(path, n.uid, n.gid)
	if n.link == "" {
		err = errors.Join(err, unix.Chmod(path, n.mode))
	}
	if !n.dir && n.link == "" {
		for name, value := range map[string][]byte{"security.capability": capability(n.cap), "user.x": []byte(n.user)} {
			if len(value) == 0 {
				if e := unix.Lremovexattr(path, name); e != unix.ENODATA {
					err = errors.Join(err, e)
				}
				continue
			}
			err = errors.Join(err, unix.Lsetxattr(path, name, value, 0))
		}
	}
	ts := []unix.Timespec{{Sec: n.mtime}, {Sec: n.mtime}}
	return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// capability is the value of security.capability that permits one capability, nil for 0. Source: capabilities(7), VFS_CAP_REVISION_2.
func capability(c byte) []byte {
	if c == 0 {
		return nil
	}
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<c)
	return append(b, make([]byte, 12)...)
}

// archives is how many archives archiveOf knows.
const archives = 64

// archiveOf is the archive of a number from 1 to archives; each of the six bits changes one property of what is in it.
func archiveOf(number int) []byte {
	bit := func(n int) bool { return number-1>>n&1 == 1 }
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, text string) {
		h.ModTime, h.Size, h.Format = time.Unix(1_100_000_000, 0), int64(len(text)), tar.FormatPAX
		if w.WriteHeader(&h) == nil {
			_, _ = w.Write([]byte(text))
		}
	}
	dir := tar.Header{Typeflag: tar.TypeDir, Name: "n/", Mode: 0o755}
	f := tar.Header{Typeflag: tar.TypeReg, Name: "n/f", Mode: 0o755, PAXRecords: map[string]string{}}
	g := tar.Header{Typeflag: tar.TypeReg, Name: "n/g", Mode: 0o755}
	text := "one"
	if bit(0) {
		text = "two"
	}
	if bit(1) {
		f.PAXRecords["SCHILY.xattr.security.capability"] = string(capability(10))
	}
	if bit(2) {
		g = tar.Header{Typeflag: tar.TypeLink, Name: "n/g", Linkname: "n/f"}
	}
	if bit(3) {
		dir.Mode = 0o1777
	}
	if bit(4) {
		f.Uid, f.Gid = 7, 8
	}
	if bit(5) {
		f.PAXRecords["SCHILY.xattr.security.capability"] = string(capability(13))
	}
	add(dir, "")
	add(f, text)
	if g.Typeflag == tar.TypeLink {
		add(g, "")
	} else {
		add(g, "one")
	}
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "n/l", Linkname: []string{"f", "g"}[number&1], Mode: 0o777}, "")
	_ = w.Close() // into memory
	return b.Bytes()
}
