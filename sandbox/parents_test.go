package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// A client does not choose names of control groups that the operator has not allowed.
func TestCgroupParentIsRefused(t *testing.T) {
	s := &Sandbox{allowedParents: []string{"/builds", "ci/"}}
	for parent, allowed := range map[string]bool{
		"/builds": true, "builds/a": true, "/ci/x": true, "/": false, "/system.slice": false, "/buildsx": false, "": false, "/builds/../system.slice": false,
	} {
		err := s.allowedParent(parent)
		if allowed != (err == nil) || err != nil && diag.KindOf(err) != diag.Denied {
			t.Errorf("%q: %v", parent, err)
		}
	}
	if err := (&Sandbox{}).allowedParent("/builds"); diag.KindOf(err) != diag.Denied {
		t.Errorf("without a list: %v", err)
	}
	if err := (&Sandbox{allowedParents: []string{"/"}}).allowedParent("any/thing"); err != nil {
		t.Error(err)
	}
}

// Nothing is left of the groups above steps when the last step has ended; a group that was there before stays.
func TestCgroupParentsAreRemoved(t *testing.T) {
	both(t, func(t *testing.T, b *box) {
		top := b.allowedParents[0]
		kept := filepath.Join(b.host.cgroups.controllers["pids"], top)
		if err := os.Mkdir(kept, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(kept)
		var steps sync.WaitGroup
		for i := range 4 {
			steps.Go(func() {
				out, exit := b.sh(t, "cat /proc/self/cgroup", func(s *Spec) { s.Limits.CgroupParent = top + "/a/" + fmt.Sprint(i%2) })
				if exit.Code != 0 || out == "" {
					t.Errorf("%+v %s", exit, out)
				}
			})
		}
		steps.Wait()
		for _, root := range b.host.cgroups.roots {
			dir := filepath.Join(root, top)
			entries, err := os.ReadDir(dir)
			if dir != kept && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", dir, err)
			}
			for _, e := range entries {
				if e.IsDir() {
					t.Errorf("%s/%s is left", dir, e.Name())
				}
			}
		}
		if _, err := os.Stat(kept); err != nil {
			t.Errorf("a group that was there before is gone: %v", err)
		}
	})
}

// What an engine that died had made above its steps is swept.
func TestSweepOfCgroupParents(t *testing.T) {
	b := newBox(t, "")
	group := fmt.Sprintf("/strata-test-swept-%d/a/strata-x/strata-x-1", os.Getpid())
	_, above := b.parents.acquire(b.host.cgroups, group)
	for _, root := range b.host.cgroups.roots {
		if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bundle, err := b.newBundle()
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.recordGroup(recordedGroup{group, above}); err != nil {
		t.Fatal(err)
	}
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, root := range b.host.cgroups.roots {
		if _, err := os.Stat(filepath.Join(root, fmt.Sprintf("strata-test-swept-%d", os.Getpid()))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left in %s: %v", root, err)
		}
	}
}

// Steps stay in the part of the tree that the service manager has delegated.
func TestDelegatedSubtree(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	for dir, delegate := range map[string]bool{"system.slice/strata.service": true, "system.slice/strata.service/engine": false, "user.slice/session": false} {
		at := filepath.Join(root, dir)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "cgroup.procs"), []byte("7\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if delegate {
			if err := unix.Setxattr(at, "trusted.delegate", []byte("1"), 0); err != nil {
				t.Skipf("the file system of temporary files: %v", err)
			}
		}
	}
	c := &cgroups{unified: true, v2: root, roots: []string{root}}
	for own, want := range map[string]string{
		"/system.slice/strata.service": "/system.slice/strata.service", "/system.slice/strata.service/engine": "/system.slice/strata.service",
		"/user.slice/session": "/", "/": "/",
	} {
		if got, err := c.delegated(own); err != nil || got != want {
			t.Errorf("%s: %s %v", own, got, err)
		}
	}
	moved, err := os.ReadFile(filepath.Join(root, "system.slice/strata.service/engine/cgroup.procs"))
	if err != nil || !strings.HasPrefix(string(moved), "7") {
		t.Errorf("the engine was not moved: %q %v", moved, err)
	}
	if got, err := (&cgroups{v2: root, roots: []string{root}}).delegated("/system.slice/strata.service"); err != nil || got != "/" {
		t.Errorf("version 1: %s %v", got, err)
	}
	h := &host{base: "/system.slice/strata.service"}
	if got := h.group("0"); got != "/system.slice/strata.service/strata-0" {
		t.Error(got)
	}
}

// Variables of a step, which may be secrets, are in no file that outlives the step or is on a disk.
func TestRuncConfigurationIsInMemory(t *testing.T) {
	b := newBox(t, "runc")
	data := make(chan string, 1)
	var found []string
	out := writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "begun") {
			bundles, _ := filepath.Glob(filepath.Join(b.root, "run", "*"))
			for _, dir := range bundles {
				err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
					if err != nil || !e.Type().IsRegular() {
						return err
					}
					if text, _ := os.ReadFile(p); strings.Contains(string(text), "hunter2") {
						found = append(found, p)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			data <- strings.Join(bundles, "")
		}
		return len(p), nil
	})
	_, exit := b.sh(t, "echo begun; cat >/dev/null", func(s *Spec) { s.Env, s.Stdout, s.Network = append(s.Env, "PASSWORD=hunter2"), out, graph.NetworkNone })
	dir := <-data
	if exit.Code != 0 || len(found) != 1 || found[0] != filepath.Join(dir, "data", "config.json") {
		t.Errorf("%+v: the secret was in %q", exit, found)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bundle is left: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
