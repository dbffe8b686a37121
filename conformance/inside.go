package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
)

// plan is what the process inside the world is to do. It is a file, since the namespaces are made with a new process.
type plan struct {
	Work     string
	Upstream string
	Daemon   string // directory with the binary under test
	Goldens  string
	Learn    bool
	Parallel int
	Retries  int
	Jobs     map[string][]string // functions by group; all of a group's if there are none
}

// inWorld runs a plan in namespaces of its own and gives the results so far, also with an error. Nothing that the tests
// start outlives it: the processes end with the world's first one.
func inWorld(ctx context.Context, p plan) (results, error) {
	l := layout{p.Work}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	planFile, resultsFile := l.path("plan.json"), l.path("results.txt")
	if err := os.WriteFile(planFile, b, 0o644); err != nil {
		return nil, err
	}
	if err := os.Remove(resultsFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program := l.path("inside")
	if err := os.Remove(program); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := copyFile(program, self); err != nil { // go run keeps it below /tmp
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, "-inside", planFile)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	runErr := cmd.Run()
	got, err := readResults(resultsFile)
	return got, errors.Join(runErr, err)
}

// inside is the first process of the world.
func inside(ctx context.Context, planFile string) error {
	b, err := os.ReadFile(planFile)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	l := layout{p.Work}
	authority, cert, err := certificates()
	if err != nil {
		return err
	}
	if err := enter(p.Upstream, authority); err != nil {
		return err
	}
	if err := serveHosts(cert, l.path("mirror")); err != nil {
		return fmt.Errorf("stand-in hosts: %w", err)
	}
	s := &suite{
		layout: l, upstream: p.Upstream, daemon: p.Daemon, goldens: p.Goldens,
		learn: p.Learn, parallel: p.Parallel, retries: p.Retries, progress: os.Stderr,
	}
	all := results{}
	for _, g := range groups {
		functions, ok := p.Jobs[g.name]
		if !ok {
			continue
		}
		got, err := s.run(ctx, g, functions)
		for _, name := range slices.Sorted(maps.Keys(got)) {
			all[key(g.name, name)] = got[name]
		}
		if err := errors.Join(err, all.write(l.path("results.txt"), nil)); err != nil {
			return err
		}
	}
	return nil
}
