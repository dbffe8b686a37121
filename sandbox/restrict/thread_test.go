package restrict

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A function does in its directory what unpacking a system needs, and nothing elsewhere.
func TestConfinedThread(t *testing.T) {
	if !Confines() {
		t.Skipf("landlock %d", ABI())
	}
	dir, other := t.TempDir(), t.TempDir()
	secret := filepath.Join(other, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	good := map[string]func() error{
		"file":      func() error { return os.WriteFile(in("f"), []byte("x"), 0o600) },
		"directory": func() error { return os.MkdirAll(in("d/e"), 0o700) },
		"link": func() error {
			return errors.Join(os.WriteFile(in("g"), nil, 0o600), os.Mkdir(in("h"), 0o700), os.Link(in("g"), in("h/g")))
		},
		"symlink": func() error { return os.Symlink("/etc/passwd", in("s")) },
		"fifo":    func() error { return unix.Mkfifo(in("p"), 0o600) },
		"remove":  func() error { return errors.Join(os.MkdirAll(in("r/s"), 0o700), os.RemoveAll(in("r"))) },
		"read":    func() error { _, err := os.ReadDir(dir); return err },
	}
	if os.Geteuid() == 0 {
		good["device"] = func() error { return unix.Mknod(in("n"), unix.S_IFCHR, 0) }
		good["disk"] = func() error { return unix.Mknod(in("b"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))) }
		good["opaque"] = func() error {
			return errors.Join(os.Mkdir(in("o"), 0o700), unix.Setxattr(in("o"), "trusted.overlay.opaque", []byte("y"), 0))
		}
		good["owner"] = func() error {
			return errors.Join(os.WriteFile(in("c"), nil, 0o600), os.Chown(in("c"), 1000, 1000), os.Chmod(in("c"), 0o4755))
		}
	}
	socket := func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	bad := map[string]func() error{
		"read":   func() error { _, err := os.ReadFile(secret); return err },
		"list":   func() error { _, err := os.ReadDir(other); return err },
		"write":  func() error { return os.WriteFile(secret, nil, 0o600) },
		"create": func() error { return os.WriteFile(filepath.Join(other, "new"), nil, 0o600) },
		"through a link": func() error {
			return errors.Join(os.Symlink(other, in("out")), os.WriteFile(in("out/new"), nil, 0o600))
		},
		"directory": func() error { return os.Mkdir(filepath.Join(other, "d"), 0o700) },
		"truncate":  func() error { return unix.Truncate(secret, 0) },
		"remove":    func() error { return os.Remove(secret) },
		"rename":    func() error { return os.Rename(secret, in("stolen")) },
		"link":      func() error { return os.Link(secret, in("linked")) },
		"device":    func() error { return unix.Mknod(filepath.Join(other, "n"), unix.S_IFCHR, 0) },
		"execute":   func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"socket":    socket,
		"mount":     func() error { return unix.Mount("none", dir, "tmpfs", 0, "") },
		"namespace": func() error { return unix.Unshare(unix.CLONE_NEWUTS) },
		"signal":    func() error { return unix.Kill(os.Getpid(), 0) },
	}
	run := func(what string, f func() error, want bool) {
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := (Dirs{Write: root}).Run(f); (err == nil) != want {
			t.Errorf("%s: works = %t, want %t (%v)", what, err == nil, want, err)
		}
	}
	for what, f := range good {
		run(what, f, true)
	}
	for what, f := range bad {
		run(what, f, false)
	}
	if b, err := os.ReadFile(secret); string(b) != "x" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = Dirs{Write: root, Read: []string{other, filepath.Join(other, "missing")}}.Run(func() error { _, err := os.ReadFile(secret); return err })
	if err != nil {
		t.Errorf("a directory that may be read: %v", err)
	}
}

// A panic is the caller's, as it would be without a thread.
func TestConfinedPanic(t *testing.T) {
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	defer func() {
		if p, ok := recover().(string); !ok && Confines() || Confines() && !strings.Contains(p, "oh no") {
			t.Errorf("%q", p)
		}
	}()
	_ = Dirs{Write: root}.Run(func() error { panic("oh no") })
	t.Error("no panic")
}

// BenchmarkRun is what a confined thread costs.
func BenchmarkRun(b *testing.B) {
	root, err := os.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	for b.Loop() {
		if err := (Dirs{Write: root}).Run(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
