package export

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// capability is cap_net_bind_service, effective and permitted.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// hostile is an image with all that a file system can hold to get rights by. The devices have the numbers of /dev/null and of a loop device.
func hostile(t *testing.T, s *store.Store) *Set {
	t.Helper()
	id := addLayer(t, s, map[string]string{"dev/": "", "bin/suid": "x", "bin/sgid": "x", "bin/cap": "x", "bin/plain": "x", "shared/": ""})
	at := func(name string) string { return filepath.Join(s.LayerDir(id), name) }
	for _, err := range []error{
		unix.Mknod(at("dev/char"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(at("dev/block"), unix.S_IFBLK|0o666, int(unix.Mkdev(7, 250))),
		unix.Mkfifo(at("dev/fifo"), 0o640), unix.Mknod(at("dev/socket"), unix.S_IFSOCK|0o600, 0),
		os.Chmod(at("dev/char"), 0o666), os.Chmod(at("dev/block"), 0o666),
		os.Chmod(at("bin/suid"), 0o755|fs.ModeSetuid), os.Chmod(at("bin/sgid"), 0o755|fs.ModeSetgid), os.Chmod(at("shared"), 0o777|fs.ModeSetgid|fs.ModeSticky),
		unix.Setxattr(at("bin/cap"), capabilityAttr, []byte(capability), 0), unix.Setxattr(at("bin/plain"), "user.note", []byte("n"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	st := tree.NewStack(s, []store.LayerID{id})
	t.Cleanup(st.Release)
	return &Set{Images: []Image{{Platform: amd64, Tree: st}}}
}

// usersDir is a directory of user 1234, and one of root with a file that is nobody else's business.
func usersDir(t *testing.T) (mine, roots string) {
	needRoot(t)
	top := t.TempDir()
	mine, roots = filepath.Join(top, "user"), filepath.Join(top, "root")
	for _, err := range []error{
		os.Chmod(filepath.Dir(top), 0o755), os.Chmod(top, 0o755), os.Mkdir(mine, 0o755), os.Mkdir(roots, 0o755),
		os.WriteFile(filepath.Join(roots, "secret"), []byte("secret"), 0o600), os.Chown(mine, 1234, 1235),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return mine, roots
}

// untouched checks root's directory.
func untouched(t *testing.T, roots string) {
	t.Helper()
	var st unix.Stat_t
	name := filepath.Join(roots, "secret")
	if err := unix.Stat(name, &st); err != nil || st.Mode&0o7777 != 0o600 || st.Uid != 0 {
		t.Errorf("root's file has the mode %o and the owner %d, %v", st.Mode, st.Uid, err)
	}
	if got, _ := os.ReadFile(name); string(got) != "secret" {
		t.Errorf("root's file holds %q", got)
	}
	if got := listing(t, roots); !slices.Equal(got, []string{"secret -rw-------"}) {
		t.Errorf("root's directory has %q", got)
	}
}

// TestLocalGivesNoDevicesAndRights: root builds an image of somebody else into a user's directory.
func TestLocalGivesNoDevicesAndRights(t *testing.T) {
	mine, _ := usersDir(t)
	s := openStore(t)
	set := hostile(t, s)
	env := testEnv(s, &client{dir: mine})
	var warned []string
	env.Events = func(e event.Event) {
		if e.Kind == event.Warn {
			warned = append(warned, e.Warning.Msg)
		}
	}
	export(t, env, set, output("local"))
	want := []string{
		"bin drwxr-xr-x", "bin/cap -rw-r--r--", "bin/plain -rw-r--r--", "bin/sgid -rwxr-xr-x", "bin/suid -rwxr-xr-x",
		"dev drwxr-xr-x", "dev/fifo prw-r-----", "dev/socket Srw-------", "shared dtrwxrwxrwx",
	}
	if got := listing(t, mine); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n, err := unix.Lgetxattr(filepath.Join(mine, "bin/cap"), capabilityAttr, nil); err != unix.ENODATA {
		t.Errorf("a capability of %d bytes came along, %v", n, err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(mine, "bin/plain"), "user.note", nil); err != nil || n != 1 {
		t.Errorf("a user's attribute was lost: %v", err)
	}
	if len(warned) != 1 {
		t.Fatalf("warnings: %q", warned)
	}
	for _, name := range []string{"bin/cap", "bin/sgid", "bin/suid", "dev/block", "dev/char", "1 more"} {
		if !strings.Contains(warned[0], name) {
			t.Errorf("the warning %q lacks %s", warned[0], name)
		}
	}

	// Who asks for them gets them, in a directory that nobody else can change.
	x, err := New(output("local", "privileged=true"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), env, set, []Exporter{x}); diag.KindOf(err) != diag.Denied {
		t.Errorf("privileged output into a user's directory: %v", err)
	}
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local", "privileged=true"))
	want = []string{
		"bin drwxr-xr-x", "bin/cap -rw-r--r--", "bin/plain -rw-r--r--", "bin/sgid grwxr-xr-x", "bin/suid urwxr-xr-x",
		"dev drwxr-xr-x", "dev/block Drw-rw-rw-", "dev/char Dcrw-rw-rw-", "dev/fifo prw-r-----", "dev/socket Srw-------", "shared dgtrwxrwxrwx",
	}
	if got := listing(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n, err := unix.Lgetxattr(filepath.Join(dir, "bin/cap"), capabilityAttr, nil); err != nil || n != len(capability) {
		t.Errorf("the capability was lost: %v", err)
	}
}

// racing runs exports into a user's directory, 10,000 files in all, while attack changes it.
func racing(t *testing.T, attack func(mine, roots string, i int), attrs ...string) {
	mine, roots := usersDir(t)
	s := openStore(t)
	files := map[string]string{}
	for i := range 100 {
		files[fmt.Sprintf("d/%d", i)] = "public"
	}
	st := tree.NewStack(s, []store.LayerID{addLayer(t, s, files)})
	t.Cleanup(st.Release)
	if err := unix.Mkfifo(filepath.Join(s.LayerDir(st.IDs()[0]), "d/fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	set := &Set{Images: []Image{{Platform: amd64, Tree: st}}}
	done, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				attack(mine, roots, i)
			}
		}
	}()
	written := 0
	for range 100 {
		x, err := New(output("local", attrs...))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), testEnv(s, &client{dir: mine}), set, []Exporter{x}); err == nil {
			written++ // an export fails when it meets the attack
		}
	}
	close(done)
	<-ended
	t.Logf("%d of 100 exports went through", written)
	untouched(t, roots)
}

// TestLocalFileSwap: the user puts a symlink to a file of root in the place of what was just written, to have its mode changed.
func TestLocalFileSwap(t *testing.T) {
	racing(t, func(mine, roots string, i int) {
		name := filepath.Join(mine, "d", fmt.Sprint(i%100))
		if i%5 == 0 {
			name = filepath.Join(mine, "d/fifo")
		}
		if os.Symlink(filepath.Join(roots, "secret"), name+".link") == nil {
			_ = os.Rename(name+".link", name)
		}
	})
}

// TestLocalDirSwap: the user exchanges a directory that is being filled, and one that is being emptied, with a symlink to one of root's.
func TestLocalDirSwap(t *testing.T) {
	for _, mode := range []string{"copy", "delete"} {
		t.Run(mode, func(t *testing.T) {
			racing(t, func(mine, roots string, i int) {
				link := filepath.Join(filepath.Dir(mine), "link") // outside, so that nothing removes it
				if _, err := os.Lstat(link); err != nil {
					_ = os.Symlink(roots, link)
				}
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(mine, "d"), unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}, "mode="+mode)
		})
	}
}

// TestDeleteStaysInTheDirectory: mode=delete removes symlinks, not what they name, and enters no mount.
func TestDeleteStaysInTheDirectory(t *testing.T) {
	mine, roots := usersDir(t)
	s := openStore(t)
	set := &Set{Images: []Image{overlaid(t, s, amd64)}}
	for _, err := range []error{
		os.Symlink(roots, filepath.Join(mine, "out")), os.MkdirAll(filepath.Join(mine, "stale/deep"), 0o755),
		os.Symlink(filepath.Join(roots, "secret"), filepath.Join(mine, "stale/deep/s")), os.Chmod(filepath.Join(mine, "stale/deep"), 0o500), giveTo(mine, 1234, 1235),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	export(t, testEnv(s, &client{dir: mine}), set, output("local", "mode=delete"))
	if got := listing(t, mine); !slices.Equal(got, withoutSetuid()) {
		t.Errorf("%q", got)
	}
	untouched(t, roots)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(mine, "stale/mnt"), 0o755), giveTo(filepath.Join(mine, "stale"), 1234, 1235),
		unix.Mount(roots, filepath.Join(mine, "stale/mnt"), "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Unmount(filepath.Join(mine, "stale/mnt"), unix.MNT_DETACH)
	x, err := New(output("local", "mode=delete"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), testEnv(s, &client{dir: mine}), set, []Exporter{x}); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("a mount was entered: %v", err)
	}
	untouched(t, roots)
}

// TestFilesOfOthersAreLeft: root exports into a user's directory in which a directory of root is; the user's rights end there.
func TestFilesOfOthersAreLeft(t *testing.T) {
	mine, _ := usersDir(t)
	if err := os.Mkdir(filepath.Join(mine, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	x, err := New(output("local"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), testEnv(s, &client{dir: mine}), &Set{Images: []Image{overlaid(t, s, amd64)}}, []Exporter{x})
	if diag.KindOf(err) != diag.Denied || !strings.Contains(err.Error(), "etc") {
		t.Errorf("%v", err)
	}
}
