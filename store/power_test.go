package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// The file system is shut down as by a power cut: what was not written yet is lost, and the same kernel mounts it again.
func TestPowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if !inOwnNamespace(t) {
		return
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	os.WriteFile(img, nil, 0o600)
	os.Truncate(img, 64<<20)
	os.Mkdir(mnt, 0o755)
	if out, err := exec.Command("mkfs.ext4", "-q", img).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4: %v %s", err, out)
	}
	mount := func() {
		if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
			t.Skipf("no loop mount: %v %s", err, out)
		}
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	root := filepath.Join(mnt, "root")
	durable := 0
	for round := range 6 {
		mount()
		if !strings.Contains(incarnation(mnt), "/") {
			t.Skip("sysfs does not tell one mount from the next")
		}
		s := open(t, root, slow())
		for i := range durable {
			r, err := s.Result(key("%d", i))
			if err != nil {
				t.Fatalf("round %d: %d of %d: %v", round, i, durable, err)
			}
			if b, err := os.ReadFile(filepath.Join(s.LayerDir(r.Outputs[0][0]), "file")); err != nil || graph.Digest(b) != key("%d", i) {
				t.Fatalf("round %d: layer of %d: %q, %v", round, i, b, err)
			}
		}
		for i := range 20 { // provisional ones of the round before
			if has(s, fmt.Sprintf("provisional %d %d", round-1, i)) {
				t.Errorf("round %d: a result that nobody synced is served", round)
			}
		}
		for range 20 {
			addLayer(t, s, key("%d", durable), 1)
			durable++
		}
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			addLayer(t, s, key("provisional %d %d", round, i), 1)
		}
		waitSweptIfAny(s)
		f, err := os.Open(mnt)
		if err != nil {
			t.Fatal(err)
		}
		const shutdown, noFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH: linux/fs/ext4/ext4.h
		err = unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noFlush)
		f.Close()
		crash(t, s)
		if uerr := unix.Unmount(mnt, 0); err != nil || uerr != nil {
			t.Skip("cannot shut the file system down: ", err, uerr)
		}
	}
	mount()
	s := open(t, root, slow())
	waitSwept(s)
	if p, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
	closeStore(t, s)
}

func waitSweptIfAny(s *Store) {
	if s.swept != nil {
		waitSwept(s)
	}
}

// inOwnNamespace runs the test again in a child with a mount namespace of its own, and reports whether this is that child.
// Otherwise any process of the machine that unshares its mounts would keep the file system alive after it is unmounted.
func inOwnNamespace(t *testing.T) bool {
	t.Helper()
	const env = childEnv + "_UNSHARED"
	if os.Getenv(env) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("cannot unshare mounts: ", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.SkipNow()
	}
	return false
}
