package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// openWork makes the work directory and takes it for this process alone.
func openWork(dir string) (layout, func(), error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, nil, err
	}
	for _, private := range []string{"/tmp/", "/run/", "/etc/", "/opt/"} {
		if strings.HasPrefix(dir+"/", private) {
			return layout{}, nil, fmt.Errorf("the work directory %s is below %s, which the tests do not see: choose another with -work", dir, private)
		}
	}
	l := layout{dir}
	for _, d := range []string{"bin", "tests", "images", "src", "reference", "daemon"} {
		if err := os.MkdirAll(l.path(d), 0o755); err != nil {
			return l, nil, err
		}
	}
	lock, err := os.OpenFile(l.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return l, nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return l, nil, fmt.Errorf("the work directory %s is in use by another run", dir)
	}
	if err := os.RemoveAll(l.path("logs")); err != nil {
		return l, nil, err
	}
	return l, func() { _ = lock.Close() }, os.MkdirAll(l.path("logs"), 0o755)
}

// prepare builds all that a run needs and lets the reference make the bytes that tests expect.
func prepare(ctx context.Context, l layout) (plan, error) {
	p := plan{Work: l.dir, Retries: 0, Parallel: 1}
	step := func(text string) { fmt.Fprintln(os.Stderr, "conformance:", text) }
	step("building the programs")
	t, err := buildPrograms(ctx, l)
	if err != nil {
		return p, err
	}
	moduleDir, err := upstreamDir(ctx)
	if err != nil {
		return p, err
	}
	step("making the stand-in images")
	images, err := makeStandIns(t)
	if err != nil {
		return p, err
	}
	if err := images.store(l.path("mirror"), l.path("images", "frontend.tar")); err != nil {
		return p, err
	}
	if err := signFixtures(ctx, l, moduleDir); err != nil {
		return p, err
	}
	step("compiling the tests")
	var modFile string
	if p.Upstream, modFile, err = changedUpstream(l, moduleDir, edits(images)); err != nil {
		return p, err
	}
	if err := buildTests(ctx, l, packages(), modFile); err != nil {
		return p, err
	}
	version, err := goCommand(ctx, nil, "list", "-m", upstream)
	if err != nil {
		return p, err
	}
	p.Goldens = l.path("goldens", strings.TrimPrefix(digestOf([]byte(images.identity+version)), "sha256:")[:16])
	if _, err := os.Stat(filepath.Join(p.Goldens, "complete")); err == nil {
		return p, nil
	}
	step("learning the expected bytes from the reference")
	return p, learn(ctx, l, p)
}

// learn runs the tests that compare bytes with the real buildkitd and keeps what it makes.
func learn(ctx context.Context, l layout, p plan) error {
	if err := os.MkdirAll(p.Goldens, 0o755); err != nil {
		return err
	}
	p.Learn, p.Daemon = true, l.path("reference")
	p.Jobs = map[string][]string{
		"client":             {"Test(Image|OCI)ExporterCompatibilityVersion"},
		"dockerfile-builtin": {"TestReproSourceDateEpoch"},
	}
	got, err := inWorld(ctx, p)
	if err != nil {
		return err
	}
	for name, r := range got {
		if r.Status != pass {
			return fmt.Errorf("the reference does not pass %s: %s", name, r.Reason)
		}
	}
	if len(got) < 3 {
		return fmt.Errorf("the reference ran %d of the tests that compare bytes", len(got))
	}
	return os.WriteFile(filepath.Join(p.Goldens, "complete"), nil, 0o644)
}

// placeDaemon gives a directory with the binary under buildkitd's name.
func placeDaemon(l layout, daemon string) (string, error) {
	if daemon == "reference" {
		return l.path("reference"), nil
	}
	path, err := exec.LookPath(daemon)
	if err != nil {
		return "", err
	}
	name := l.path("daemon", "buildkitd")
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	return l.path("daemon"), copyFile(name, path)
}
