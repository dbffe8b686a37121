package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

func userRoot(t *testing.T, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	os.Mkdir(filepath.Join(root, "etc"), 0o755)
	for name, data := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolveUser(t *testing.T) {
	root := userRoot(t, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nhomeless:x:7:7:::\nhuge:x:4294967294:1::/:\n",
		"root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app,other\n")
	for _, c := range []struct {
		spec string
		want User
	}{
		{"", User{0, 0, []uint32{10}, "/root"}},
		{"root", User{0, 0, []uint32{10}, "/root"}},
		{"0", User{0, 0, []uint32{10}, "/root"}},
		{"app", User{1000, 1001, []uint32{10, 44}, "/home/app"}},
		{"1000", User{1000, 1001, []uint32{10, 44}, "/home/app"}},
		{"app:", User{1000, 1001, []uint32{10, 44}, "/home/app"}},
		{"1000:1000", User{1000, 1000, nil, "/home/app"}},
		{"app:video", User{1000, 44, nil, "/home/app"}},
		{"1000:video", User{1000, 44, nil, "/home/app"}},
		{"1234", User{1234, 0, nil, "/"}},
		{"1234:5678", User{1234, 5678, nil, "/"}},
		{"1234:wheel", User{1234, 10, nil, "/"}},
		{"homeless", User{7, 7, nil, "/"}},
		{"2147483647:2147483647", User{2147483647, 2147483647, nil, "/"}},
	} {
		got, err := ResolveUser(root, c.spec)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %+v %v, want %+v", c.spec, got, err, c.want)
		}
	}
	for spec, part := range map[string]string{
		"nobody": "no user \"nobody\"", "app:nogroup": "no group \"nogroup\"", "1000:x": "no group \"x\"", "2147483648": "out of range", "4294967295": "out of range",
		"0:2147483648": "out of range", "99999999999999999999": "out of range", "+0": "invalid user or group id", "-1": "invalid user or group id", "0:+0": "invalid user or group id",
		"huge": "out of range",
	} {
		if _, err := ResolveUser(root, spec); err == nil || !strings.Contains(err.Error(), part) || diag.KindOf(err) != diag.Invalid {
			t.Errorf("%q: error %v, want %q", spec, err, part)
		}
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	root := t.TempDir()
	for spec, want := range map[string]User{
		"": {Home: "/"}, "0": {Home: "/"}, "5:6": {5, 6, nil, "/"}, "root": {Home: "/"}, "root:root": {Home: "/"}, "5:root": {5, 0, nil, "/"}, "root:6": {0, 6, nil, "/"},
	} {
		if got, err := ResolveUser(root, spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
	for _, spec := range []string{"app", "root:app"} {
		if _, err := ResolveUser(root, spec); err == nil {
			t.Errorf("%s: a name was found in no file", spec)
		}
	}
	if _, err := ResolveUser(userRoot(t, "app:x:1:1::/:\n", ""), "root"); err == nil {
		t.Error("root was found in a file without it")
	}
}

// Hostile user files must neither block, nor lead out of the root, nor be read without end.
func TestResolveUserHostile(t *testing.T) {
	passwd := func(root string) string { return filepath.Join(root, "etc/passwd") }
	refused := func(what, root string) {
		t.Helper()
		if _, err := ResolveUser(root, "app"); err == nil || diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	fifo := userRoot(t, "", "")
	os.Remove(passwd(fifo))
	if err := unix.Mkfifo(passwd(fifo), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("FIFO", fifo)

	outside := userRoot(t, "", "")
	os.Remove(passwd(outside))
	secret := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(secret, []byte("app:x:1:1::/:\n"), 0o644)
	os.Symlink(secret, passwd(outside))
	refused("a link out of the root", outside)

	loop := userRoot(t, "", "")
	os.Remove(passwd(loop))
	os.Symlink("passwd", passwd(loop))
	refused("a loop", loop)

	dir := userRoot(t, "", "")
	os.Remove(passwd(dir))
	os.Mkdir(passwd(dir), 0o755)
	refused("a directory", dir)

	huge := userRoot(t, string(bytes.Repeat([]byte("x:x:9:9::/:\n"), maxUserFile/12+2)), "")
	refused("a huge file", huge)

	if os.Geteuid() == 0 {
		zero := userRoot(t, "", "")
		os.Remove(passwd(zero))
		if err := unix.Mknod(passwd(zero), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))); err == nil {
			refused("/dev/zero", zero)
		}
	}
}
