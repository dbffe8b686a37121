package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// childEnv makes the test binary act as another owner of the root that it names.
const childEnv = "STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" {
		if err := child(root, os.Getenv(childEnv+"_FROM")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child commits layer after layer, with a blob now and then, and says so on its standard output once Update has returned.
func child(root, from string) error {
	s, err := Open(root, Options{Log: quiet, MaxBytes: -1, flushDelay: 3 * time.Millisecond})
	if err != nil {
		return err
	}
	fmt.Println("open")
	n, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	for background := context.Background(); ; n++ {
		d, err := s.NewLayer(background)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.Dir, "file"), []byte(strconv.Itoa(n)), 0o644); err != nil {
			return err
		}
		err = s.Update(background, func(b *Batch) error {
			b.Layer(d, LayerInfo{Size: 1, Files: 1})
			b.Result(key("%d", n), Result{Outputs: [][]LayerID{{d.ID}}, Label: strconv.Itoa(n), Origins: originsOf(n)})
			b.Memo(key("def %d", n), key("%d", n))
			return nil
		})
		if err != nil {
			return err
		}
		if n%4 == 0 {
			if _, err := s.PutBlob(background, []byte(strconv.Itoa(n))); err != nil {
				return err
			}
		}
		fmt.Println(n)
	}
}

// originsOf gives every third result an origin, and some two.
func originsOf(n int) []string {
	return []string{"registry.example.com/cache:main", "local:/cache of user 0"}[:max(0, 2-n%3)%3]
}

func startChild(t *testing.T, root string, from int) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+root, childEnv+"_FROM="+strconv.Itoa(from))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "open" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatal("the child did not open the store")
	}
	return cmd, lines
}

func TestKill9KeepsWhatWasAcknowledged(t *testing.T) {
	root := t.TempDir()
	acked := 0
	for round := range 36 {
		cmd, lines := startChild(t, root, acked)
		stop := acked + rand.IntN(40)
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatal(err)
			}
			if acked = n + 1; acked > stop {
				break
			}
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		cmd.Process.Kill()
		for lines.Scan() { // what it still said was acknowledged too
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				acked = n + 1
			}
		}
		cmd.Wait()

		s := open(t, root, slow())
		for n := range acked {
			r, err := s.Result(key("%d", n))
			if err != nil {
				t.Fatalf("round %d: result %d of %d: %v", round, n, acked, err)
			}
			if !slices.Equal(r.Origins, originsOf(n)) {
				t.Fatalf("round %d: result %d is from %q", round, n, r.Origins)
			}
			b, err := os.ReadFile(filepath.Join(s.LayerDir(r.Outputs[0][0]), "file"))
			if err != nil || string(b) != strconv.Itoa(n) || r.Label != string(b) {
				t.Fatalf("round %d: result %d has the layer of %q: %v", round, n, b, err)
			}
			if m, err := s.Memo(key("def %d", n)); m != key("%d", n) {
				t.Fatalf("round %d: memo %d: %v", round, n, err)
			}
			if n%4 == 0 {
				if _, ok := s.HasBlob(key("%d", n)); !ok {
					t.Fatalf("round %d: blob %d is gone", round, n)
				}
			}
		}
		if problems, err := s.Check(t.Context(), CheckOptions{Full: round%9 == 0}); err != nil || len(problems) > 0 {
			t.Fatalf("round %d: %v, %v", round, problems, err)
		}
		if round%2 == 0 {
			crash(t, s)
		} else {
			closeStore(t, s)
		}
	}
	if acked < 100 {
		t.Errorf("only %d updates were made", acked)
	}
}

func TestLockConflictNamesTheOwner(t *testing.T) {
	root := t.TempDir()
	cmd, _ := startChild(t, root, 0)
	_, err := Open(root, slow())
	wantKind(t, err, diag.Conflict)
	var held *LockedError
	if !errors.As(err, &held) || held.PID != cmd.Process.Pid || held.Root != root {
		t.Errorf("got %v, want process %d", err, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	open(t, root, slow()) // a dead owner's lock is free

	if _, err := Open(root, slow()); !errors.As(err, &held) || held.PID != os.Getpid() {
		t.Errorf("got %v", err) // also within one process
	}
}

func TestSweepAfterCrash(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	kept := addLayer(t, s, key("kept"), 1)
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tmp, _, err := s.TempDir("x")
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.NewBlob(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	partial := w.f.Name()
	lost := []byte("a blob whose record was lost")
	os.WriteFile(s.blobPath(key("%s", lost)), lost, 0o644)
	os.WriteFile(s.blobPath(key("bad")), []byte("something else"), 0o644)
	crash(t, s)

	s = open(t, root, slow())
	waitSwept(s)
	for _, gone := range []string{d.Dir, tmp, partial, s.blobPath(key("bad"))} {
		if _, err := os.Lstat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there", gone)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, oldTemp+"*")); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
	if _, err := s.Layer(kept); err != nil {
		t.Error(err)
	}
	if n, ok := s.HasBlob(key("%s", lost)); !ok || n != int64(len(lost)) {
		t.Error("a good blob was not taken up again")
	}
}

// waitSwept waits for the background sweep, which is among the goroutines that end with the context.
func waitSwept(s *Store) {
	<-s.swept
	s.trash.wait(nil)
}

func TestSweepUnmounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := filepath.Join(t.TempDir(), "with space")
	s := open(t, root, slow())
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", d.Dir, "tmpfs", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() { unix.Unmount(d.Dir, unix.MNT_DETACH) })
	crash(t, s)
	s = open(t, root, slow())
	waitSwept(s)
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), `with\040space`) {
		t.Error("still mounted")
	}
	if _, err := os.Lstat(d.Dir); !os.IsNotExist(err) {
		t.Error("the draft is still there")
	}
}

func TestOtherBootDropsWhatIsProvisional(t *testing.T) {
	root := t.TempDir()
	opt := slow()
	opt.incarnation = "boot 1"
	s := open(t, root, opt)
	durable := addLayer(t, s, key("durable"), 1)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	provisional := addLayer(t, s, key("provisional"), 1, durable)
	crash(t, s)

	s = open(t, root, opt) // the same boot: both
	if _, err := s.Result(key("provisional")); err != nil {
		t.Fatal(err)
	}
	crash(t, s)

	opt.incarnation = "boot 2"
	s = open(t, root, opt)
	if _, err := s.Result(key("durable")); err != nil {
		t.Fatal(err)
	}
	_, err := s.Result(key("provisional"))
	wantMiss(t, err)
	waitSwept(s)
	if _, err := os.Lstat(s.LayerDir(provisional)); !os.IsNotExist(err) {
		t.Error("the provisional layer is still there")
	}
	if left, _ := filepath.Glob(filepath.Join(root, "wal.*")); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
}

func TestIncarnationChangesWithTheMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if !inOwnNamespace(t) {
		return
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 32<<20); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(mnt, 0o755)
	if out, err := exec.Command("mkfs.ext4", "-q", img).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4: %v %s", err, out)
	}
	mounted := func() string {
		if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
			t.Skipf("no loop mount: %v %s", err, out)
		}
		defer unix.Unmount(mnt, unix.MNT_DETACH)
		a, b := incarnation(mnt), incarnation(mnt)
		if a != b || a == "" {
			t.Errorf("%q and %q", a, b)
		}
		return a
	}
	first, second := mounted(), mounted()
	if !strings.Contains(first, "/") {
		t.Skip("sysfs does not tell")
	}
	if first == second {
		t.Errorf("both mounts are %q", first)
	}
}
