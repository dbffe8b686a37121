package outfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func holds(t testing.TB, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
	}
}

func list(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestCreateReplacesWhenComplete(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	check(t, os.WriteFile(name, []byte("old"), 0o600))
	for _, end := range []struct {
		how  func(*File) error
		want string
	}{{(*File).Abort, "old"}, {(*File).Close, "new"}} {
		f, err := Create(name)
		check(t, err)
		_, err = f.Write([]byte("new"))
		check(t, err)
		holds(t, name, "old")
		check(t, end.how(f))
		check(t, f.Abort())
		holds(t, name, end.want)
		if got := list(t, dir); !slices.Equal(got, []string{"f"}) {
			t.Errorf("left: %q", got)
		}
	}
	if fi, _ := os.Stat(name); fi.Mode().Perm() != 0o600 {
		t.Errorf("the mode became %v", fi.Mode())
	}
	fails := errors.New("it fails")
	if err := Write(filepath.Join(dir, "none"), func(io.Writer) error { return fails }); !errors.Is(err, fails) {
		t.Errorf("%v", err)
	}
	if got := list(t, dir); !slices.Equal(got, []string{"f"}) {
		t.Errorf("left: %q", got)
	}
}

// TestKilledWriterLeavesTheOldFile kills a process that is writing.
func TestKilledWriterLeavesTheOldFile(t *testing.T) {
	if name := os.Getenv("OUTFILE_TEST_WRITE"); name != "" {
		f, err := Create(name)
		check(t, err)
		_, err = f.Write([]byte("half"))
		check(t, err)
		os.Stdout.WriteString("written\n")
		select {}
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	check(t, os.WriteFile(name, []byte("old"), 0o644))
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "OUTFILE_TEST_WRITE="+name)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	line := make([]byte, len("written"))
	_, err = io.ReadFull(out, line)
	check(t, err)
	check(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	holds(t, name, "old")
	if got := list(t, dir); !slices.Equal(got, []string{"f"}) {
		t.Errorf("left: %q", got)
	}
}

func TestCreateWritesThrough(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	check(t, os.WriteFile(at("file"), []byte("old"), 0o644))
	check(t, os.Symlink("file", at("link")))
	check(t, os.Symlink(at("link"), at("chain")))
	check(t, os.Symlink("new", at("dangling")))
	check(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mkfifo(at("fifo"), 0o600))
	check(t, os.WriteFile(at("mounted"), []byte("old"), 0o644))
	check(t, unix.Mount(at("mounted"), at("mounted"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(at("mounted"), unix.MNT_DETACH) })
	read := make(chan string)
	go func() {
		b, _ := os.ReadFile(at("fifo"))
		read <- string(b)
	}()
	for _, name := range []string{"chain", "dangling", "null", "fifo", "mounted"} {
		check(t, WriteData(at(name), []byte("to "+name)))
	}
	if got := <-read; got != "to fifo" {
		t.Errorf("the FIFO's reader got %q", got)
	}
	holds(t, at("file"), "to chain")
	holds(t, at("new"), "to dangling")
	holds(t, at("mounted"), "to mounted")
	for name, want := range map[string]fs.FileMode{
		"link": fs.ModeSymlink, "chain": fs.ModeSymlink, "dangling": fs.ModeSymlink, "null": fs.ModeDevice | fs.ModeCharDevice, "fifo": fs.ModeNamedPipe,
	} {
		if fi, err := os.Lstat(at(name)); err != nil || fi.Mode().Type() != want {
			t.Errorf("%s became a %v, %v", name, fi.Mode(), err)
		}
	}
}

// TestStdoutIsAppended: the shell's ">>" opened the file; a new open would write from its start.
func TestStdoutIsAppended(t *testing.T) {
	if os.Getenv("OUTFILE_TEST_STDOUT") != "" {
		check(t, WriteData("/dev/stdout", []byte("b\n")))
		os.Exit(0)
	}
	name := filepath.Join(t.TempDir(), "f")
	check(t, os.WriteFile(name, []byte("a\n"), 0o644))
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	defer f.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env, cmd.Stdout = append(os.Environ(), "OUTFILE_TEST_STDOUT=1"), f
	check(t, cmd.Run())
	holds(t, name, "a\nb\n")
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	for name, kind := range map[string]diag.Kind{
		dir: diag.Invalid, dir + "/": diag.Invalid, dir + "/none/f": diag.NotFound, dir + "/loop": diag.Invalid, dir + "/loop/f": diag.Invalid,
	} {
		if _, err := Create(name); diag.KindOf(err) != kind || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v of kind %v", name, err, diag.KindOf(err))
		}
	}
}

// usersDir makes a directory of user 1234, and one of root with a file that nobody else may touch.
func usersDir(t *testing.T) (mine, roots string) {
	needRoot(t)
	top := t.TempDir()
	check(t, os.Chmod(filepath.Dir(top), 0o755))
	check(t, os.Chmod(top, 0o755))
	mine, roots = filepath.Join(top, "user"), filepath.Join(top, "root")
	check(t, os.Mkdir(mine, 0o755))
	check(t, os.Mkdir(roots, 0o755))
	check(t, os.WriteFile(filepath.Join(roots, "secret"), []byte("secret"), 0o600))
	check(t, os.Chown(mine, 1234, 1235))
	return mine, roots
}

// TestSymlinkOfAnotherUser: root names a path in a user's directory, where the user has put a symlink to a file of root.
func TestSymlinkOfAnotherUser(t *testing.T) {
	mine, roots := usersDir(t)
	for name, target := range map[string]string{"file": roots + "/secret", "new": "../root/new", "dir": roots, "up": "/"} {
		check(t, os.Symlink(target, filepath.Join(mine, name)))
		check(t, os.Lchown(filepath.Join(mine, name), 1234, 1235))
	}
	for _, name := range []string{"file", "new", "dir/secret", "dir/new", "up/new"} {
		if err := WriteData(filepath.Join(mine, name), []byte("x")); diag.KindOf(err) != diag.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenDir(filepath.Join(mine, "dir", "sub")); diag.KindOf(err) != diag.Denied {
		t.Errorf("a directory was made: %v", err)
	}
	holds(t, filepath.Join(roots, "secret"), "secret")
	if got := list(t, roots); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("root's directory has %q", got)
	}
	// The user's own symlinks lead to the user's own files, and root's wherever root wants.
	check(t, os.Mkdir(filepath.Join(mine, "real"), 0o755))
	check(t, os.Chown(filepath.Join(mine, "real"), 1234, 1235))
	check(t, os.Symlink("real", filepath.Join(mine, "own")))
	check(t, os.Lchown(filepath.Join(mine, "own"), 1234, 1235))
	check(t, os.Symlink(roots, filepath.Join(mine, "by-root")))
	for _, name := range []string{"own/f", "by-root/f"} {
		check(t, WriteData(filepath.Join(mine, name), []byte("x")))
	}
	var st unix.Stat_t
	check(t, unix.Stat(filepath.Join(mine, "real/f"), &st))
	if st.Uid != 1234 || st.Gid != 1235 {
		t.Errorf("the file belongs to %d:%d", st.Uid, st.Gid)
	}
}

// TestOwnersRights: what is done for a directory's owner is what the owner may do, and only there.
func TestOwnersRights(t *testing.T) {
	mine, roots := usersDir(t)
	d, err := OpenDir(filepath.Join(mine, "a/b"))
	check(t, err)
	defer d.Close()
	secret := filepath.Join(roots, "secret")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				err := d.Owner.Do(func() error {
					if _, err := os.ReadFile(secret); !errors.Is(err, fs.ErrPermission) {
						t.Errorf("the owner reads root's file: %v", err)
					}
					if err := unix.Mknodat(d.Fd(), "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != unix.EPERM {
						t.Errorf("the owner makes a device node: %v", err)
					}
					return unix.Chown(secret, 1, 1)
				})
				if err != unix.EPERM {
					t.Errorf("the owner gives root's file away: %v", err)
				}
				if _, err := os.ReadFile(secret); err != nil {
					t.Errorf("root's rights did not come back: %v", err)
				}
			}
		})
	}
	wg.Wait()
	var st unix.Stat_t
	check(t, unix.Fstat(d.Fd(), &st))
	if st.Uid != 1234 || st.Gid != 1235 {
		t.Errorf("the new directory belongs to %d:%d", st.Uid, st.Gid)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || (n == 1) != inUserNamespace() {
		t.Errorf("dumpable: %d, %v", n, err)
	}
	groups, err := os.Getgroups()
	check(t, err)
	status, err := os.ReadFile("/proc/self/status")
	check(t, err)
	if !strings.Contains(string(status), "\nGroups:\t"+strings.Trim(strings.ReplaceAll(fmtInts(groups), ",", " "), "[]")) {
		t.Errorf("the groups are not %v any more", groups)
	}
}

func fmtInts(v []int) string {
	var s []string
	for _, n := range v {
		s = append(s, strconv.Itoa(n))
	}
	return strings.Join(s, " ")
}

// TestDirSwap: while root writes below a user's directory, its user swaps a directory for a symlink to one of root's.
func TestDirSwap(t *testing.T) {
	mine, roots := usersDir(t)
	d, err := OpenDir(mine)
	check(t, err)
	defer d.Close()
	check(t, d.MkdirAll("x"))
	stop := swap(t, filepath.Join(mine, "x"), roots)
	for i := range 10_000 {
		name := "x/" + strconv.Itoa(i%100)
		_ = d.MkdirAll("x/sub" + strconv.Itoa(i%100)) // it fails while x is a symlink
		_ = d.Write(name, []byte("x"))
		_ = d.Remove(name)
	}
	stop()
	if got := list(t, roots); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("written outside: %q", got)
	}
}

// swap exchanges a directory and a symlink to target as fast as it can until stop is called.
func swap(t *testing.T, dir, target string) (stop func()) {
	t.Helper()
	link := dir + ".link"
	check(t, os.Symlink(target, link))
	done, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	return func() { close(done); <-ended }
}

// TestRemoveAllStays: what is removed is the directory's own, whatever links and mounts it has.
func TestRemoveAllStays(t *testing.T) {
	mine, roots := usersDir(t)
	d, err := OpenDir(mine)
	check(t, err)
	defer d.Close()
	check(t, d.MkdirAll("x/y/z"))
	check(t, os.Symlink(roots, filepath.Join(mine, "x/y/out")))
	check(t, os.Chmod(filepath.Join(mine, "x/y"), 0))
	remove := func() error { return d.Owner.Do(func() error { return RemoveAll(d.Fd(), "x") }) }
	check(t, remove())
	holds(t, filepath.Join(roots, "secret"), "secret")

	check(t, os.MkdirAll(filepath.Join(mine, "x/mnt"), 0o755))
	check(t, unix.Mount(roots, filepath.Join(mine, "x/mnt"), "", unix.MS_BIND, ""))
	defer unix.Unmount(filepath.Join(mine, "x/mnt"), unix.MNT_DETACH)
	if err := RemoveAll(d.Fd(), "x"); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("a mount was entered: %v", err)
	}
	holds(t, filepath.Join(roots, "secret"), "secret")
}

// TestOpenNeverWaits: a FIFO, a device and a symlink are errors, at once.
func TestOpenNeverWaits(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	check(t, unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	check(t, os.Symlink("/dev/zero", filepath.Join(dir, "link")))
	d, err := OpenExisting(dir)
	check(t, err)
	defer d.Close()
	for _, name := range []string{"fifo", "zero", "link", ".", "../x"} {
		done := make(chan error, 1)
		go func() {
			_, err := d.Open(name)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s was opened", name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: waits", name)
		}
	}
}
