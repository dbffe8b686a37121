package sandbox

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

func TestHostsFile(t *testing.T) {
	got, err := hostsFile("box", []graph.HostIP{{Host: "db", IP: "10.0.0.1"}, {Host: "six", IP: "[::2]"}, {Host: "me", IP: "host-gateway"}}, "10.87.0.1")
	want := "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n::2\tsix\n10.87.0.1\tme\n"
	if err != nil || string(got) != want {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []graph.HostIP{{Host: "x", IP: "nope"}, {Host: "a\nb", IP: "::1"}, {Host: "", IP: "::1"}} {
		if _, err := hostsFile("box", []graph.HostIP{bad}, ""); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}

func TestResolvConf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(name, []byte("# comment\nnameserver 10.0.0.53\nnameserver 10.0.0.54\ndomain old\nsearch a.example b.example\noptions ndots:2 edns0\n"), 0o644)
	c := readResolvConf(name)
	if got, want := string(c.bytes()), "search a.example b.example\nnameserver 10.0.0.53\nnameserver 10.0.0.54\noptions ndots:2 edns0\n"; got != want {
		t.Errorf("%q", got)
	}
	if !c.reachable() {
		t.Error("plain servers can be reached")
	}
	if got := string(c.override(DNS{Servers: []string{"1.1.1.1"}, Search: []string{"x"}}).bytes()); got != "search x\nnameserver 1.1.1.1\noptions ndots:2 edns0\n" {
		t.Errorf("%q", got)
	}
	for _, s := range [][]string{nil, {"127.0.0.53"}, {"10.0.0.1", "::1"}, {"2001:db8::1"}, {"fe80::1%eth0"}} {
		if (resolvConf{servers: s}).reachable() {
			t.Errorf("%v cannot be reached from a bridge", s)
		}
	}
}

func TestFreeSubnet(t *testing.T) {
	pool := netip.MustParsePrefix("10.87.0.0/22")
	seen := map[netip.Prefix]bool{}
	var taken []netip.Prefix
	for range 4 {
		p, err := freeSubnet(pool, "0123abcd", taken)
		if err != nil || seen[p] || p.Bits() != 24 || !pool.Overlaps(p) {
			t.Fatalf("%v %v", p, err)
		}
		seen[p], taken = true, append(taken, p)
	}
	if p, err := freeSubnet(pool, "x", taken); err == nil {
		t.Errorf("%v is not free", p)
	}
	if p, err := freeSubnet(pool, "x", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil {
		t.Errorf("%v is within a route", p)
	}
}

// A made path goes away again and leaves the times of the directory that it was in.
func TestMakeAndRemovePath(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	past := time.Unix(1000000000, 5)
	os.Chtimes(filepath.Join(root, "etc"), past, past)
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	mtime := func() time.Time {
		st, err := os.Stat(filepath.Join(root, "etc"))
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime()
	}
	own := newNode{file: true, uid: os.Getuid(), gid: os.Getgid()}
	nodes, err := makePath(dir, "/etc/a/b/file", own, nil)
	if err != nil || len(nodes) != 3 || !mtime().Equal(past) {
		t.Fatalf("%+v %v %v", nodes, err, mtime())
	}
	if again, err := makePath(dir, "/etc/a/b/file", own, nil); err != nil || len(again) != 0 {
		t.Fatalf("%+v %v", again, err)
	}
	removeMade(dir, nodes)
	if _, err := os.Lstat(filepath.Join(root, "etc/a")); !os.IsNotExist(err) || !mtime().Equal(past) {
		t.Fatalf("%v %v", err, mtime())
	}
}

// Steps that run on one root file system at once do not remove each other's mount points; the last one removes them.
func TestMountPointsOfStepsAtOnce(t *testing.T) {
	root := t.TempDir()
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	points := &mountPoints{}
	own := newNode{file: true, uid: os.Getuid(), gid: os.Getgid()}
	var steps [3][]made
	for i, p := range []string{"/etc/file", "/etc/other", "/etc/file"} {
		if steps[i], err = points.make(dir, p, own); err != nil || len(steps[i]) != 2 {
			t.Fatal(steps[i], err)
		}
	}
	there := func(name string) bool {
		_, err := os.Lstat(filepath.Join(root, name))
		return err == nil
	}
	points.remove(dir, steps[0])
	if !there("etc/file") || !there("etc/other") {
		t.Error("a mount point of another step is removed")
	}
	points.remove(dir, steps[2])
	if there("etc/file") || !there("etc/other") {
		t.Error("the last step that needs a mount point does not remove it")
	}
	points.remove(dir, steps[1])
	if there("etc") || len(points.users) != 0 {
		t.Errorf("left: %v", points.users)
	}
}

// What the build put into or in place of a made path stays, inside and outside of the root.
func TestRemoveMadeIsCareful(t *testing.T) {
	canary := t.TempDir()
	os.MkdirAll(filepath.Join(canary, "b"), 0o755)
	own := newNode{uid: os.Getuid(), gid: os.Getgid()}
	for what, change := range map[string]func(root string){
		"parent replaced by a link out": func(root string) {
			os.RemoveAll(filepath.Join(root, "a"))
			os.Symlink(canary, filepath.Join(root, "a"))
		},
		"parent replaced by a link within": func(root string) {
			os.RemoveAll(filepath.Join(root, "a"))
			os.MkdirAll(filepath.Join(root, "real/b"), 0o755)
			os.Symlink("real", filepath.Join(root, "a"))
		},
		"filled": func(root string) { os.WriteFile(filepath.Join(root, "a/b/x"), nil, 0o644) },
		"replaced": func(root string) {
			os.Rename(filepath.Join(root, "a/b"), filepath.Join(root, "a/c"))
			os.Mkdir(filepath.Join(root, "a/b"), 0o755)
		},
	} {
		root := t.TempDir()
		dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := makePath(dir, "/a/b", own, nil)
		if err != nil || len(nodes) != 2 {
			t.Fatal(nodes, err)
		}
		change(root)
		removeMade(dir, nodes)
		dir.Close()
		if _, err := os.Stat(filepath.Join(root, "a/b")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(canary, "b")); err != nil {
			t.Fatalf("%s: deleted outside: %v", what, err)
		}
	}
}

// A mount point goes whatever owner and mode the step has given it.
func TestRemoveMadeOfAnotherOwner(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	nodes, err := makePath(dir, "/a/b", newNode{}, nil)
	if err != nil || len(nodes) != 2 {
		t.Fatal(nodes, err)
	}
	for _, p := range []string{"a/b", "a"} {
		if err := errors.Join(os.Chmod(filepath.Join(root, p), 0o700), os.Chown(filepath.Join(root, p), 5, 5)); err != nil {
			t.Fatal(err)
		}
	}
	removeMade(dir, nodes)
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestOpenInRoot(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("inside"), 0o644)
	os.Symlink("/etc/hostname", filepath.Join(root, "abs"))
	os.Symlink("../../../../etc/hostname", filepath.Join(root, "up"))
	for _, name := range []string{"abs", "/up", "etc/../../../etc/hostname"} {
		f, err := OpenInRoot(root, name, unix.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		data, _ := io.ReadAll(f)
		f.Close()
		if string(data) != "inside" {
			t.Errorf("%s: %q", name, data)
		}
	}
}
