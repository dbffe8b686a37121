package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// testGroup is a test package of upstream with one setting of its environment.
type testGroup struct {
	name string
	pkg  string   // below the module
	tops []string // the test functions that run sandbox tests
	env  []string
}

// groups are all sandbox tests of a client's and a frontend's view. FRONTEND_GATEWAY_ONLY is completed by the runner.
var groups = []testGroup{
	{name: "client", pkg: "client", tops: []string{"TestIntegration", "TestClientGatewayIntegration", "TestCompatibilityIntegration"}},
	{name: "frontend", pkg: "frontend", tops: []string{"TestFrontendIntegration"}},
	{name: "buildctl", pkg: "cmd/buildctl", tops: []string{"TestCLIIntegration"}},
	{name: "dockerfile-builtin", pkg: "frontend/dockerfile", tops: []string{"TestIntegration"}, env: []string{"FRONTEND_BUILTIN_ONLY=1"}},
	{name: "dockerfile-client", pkg: "frontend/dockerfile", tops: []string{"TestIntegration"}, env: []string{"FRONTEND_CLIENT_ONLY=1"}},
	{name: "dockerfile-gateway", pkg: "frontend/dockerfile", tops: []string{"TestIntegration"}, env: []string{"FRONTEND_GATEWAY_ONLY="}},
}

func groupNamed(name string) (testGroup, bool) {
	i := slices.IndexFunc(groups, func(g testGroup) bool { return g.name == name })
	if i < 0 {
		return testGroup{}, false
	}
	return groups[i], true
}

// packages are the test packages of all groups.
func packages() []string {
	var out []string
	for _, g := range groups {
		if !slices.Contains(out, g.pkg) {
			out = append(out, g.pkg)
		}
	}
	return out
}

// suite runs groups inside the world.
type suite struct {
	layout   layout
	upstream string
	daemon   string // directory with the binary under test, named buildkitd
	goldens  string
	learn    bool
	parallel int
	retries  int
	progress io.Writer
}

// environment is what a test binary sees: nothing of the caller's.
func (s *suite) environment(g testGroup, parallel int) []string {
	env := []string{
		"PATH=" + s.daemon + ":" + s.layout.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/tmp/home", "USER=root", "LANG=C.UTF-8", "TZ=UTC",
		"GOMAXPROCS=" + strconv.Itoa(parallel),
		"BUILDKIT_RUN_NETWORK_INTEGRATION_TESTS=1",
		"BUILDKIT_CNI_INIT_LOCK_PATH=/run/buildkit_cni_bridge.lock",
		"BUILDKIT_REGISTRY_MIRROR_DIR=" + s.layout.path("mirror"),
		"BUILDKIT_TEST_SIGN_FIXTURES=" + s.layout.path("sign"),
		envGoldens + "=" + s.goldens,
		// The registry: it may hold manifests whose layers are at other addresses.
		"REGISTRY_VALIDATION_DISABLED=true",
		"STRATA_ALLOW_OLD_RUNC=1", // that of the distribution
	}
	if s.learn {
		env = append(env, envLearn+"=1", "BUILDKIT_UPDATE_COMPAT_GOLDENS=1")
	}
	for _, e := range g.env {
		if e == "FRONTEND_GATEWAY_ONLY=" {
			e += "local:" + s.layout.path("images", "frontend.tar")
		}
		env = append(env, e)
	}
	return env
}

// run runs the functions of a group, all of them if functions is empty; each may be a regular expression. Every top function
// is a run of its own, so that one that hangs or crashes keeps nothing else from running.
func (s *suite) run(ctx context.Context, g testGroup, functions []string) (map[string]result, error) {
	results := map[string]result{}
	for _, top := range g.tops {
		got, err := s.runTop(ctx, g, top, functions)
		maps.Copy(results, got)
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

// runTop runs functions below a top function. Tests that a crash of the test binary left without a result, and those that
// failed, are run again.
func (s *suite) runTop(ctx context.Context, g testGroup, top string, functions []string) (map[string]result, error) {
	results := map[string]result{}
	parallel, started := s.parallel, map[string]bool{}
	for try := 0; ; try++ {
		out, err := s.once(ctx, g, top, functions, parallel)
		if err != nil {
			return results, err
		}
		maps.Copy(started, out.started)
		for name, r := range out.results {
			if try > 0 && r.Status == pass {
				r.Reason = fmt.Sprintf("in try %d", try+1)
			}
			if old, ok := results[name]; !ok || old.Status == fail {
				results[name] = r
			}
		}
		functions = again(results, started)
		functions = slices.DeleteFunc(functions, func(f string) bool { return hung(results, f) })
		if len(functions) == 0 || try >= s.retries {
			break
		}
		parallel = max(1, s.parallel/2)
	}
	for name := range started {
		if _, ok := results[name]; !ok {
			results[name] = result{Status: fail, Reason: "the test binary ended before it did"}
		}
	}
	return results, nil
}

// idleLimit is longer than a sandbox may take, after which upstream cancels its context: a test that says nothing for that
// long waits for something that does not come.
const idleLimit = 6 * time.Minute

// watchdog ends a command that says nothing for a while.
type watchdog struct {
	limit time.Duration
	said  chan struct{}
	fired bool // read it after run
}

func newWatchdog(limit time.Duration) *watchdog {
	return &watchdog{limit: limit, said: make(chan struct{}, 1)}
}

func (w *watchdog) Write(b []byte) (int, error) {
	select {
	case w.said <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (w *watchdog) run(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	timer := time.NewTimer(w.limit)
	defer timer.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-w.said:
			timer.Reset(w.limit)
		case <-timer.C:
			w.fired = true
			_ = cmd.Process.Kill()
			return <-ended
		}
	}
}

// again gives the functions of tests that have failed or have no result.
func again(results map[string]result, started map[string]bool) []string {
	set := map[string]bool{}
	for name := range started {
		if r, ok := results[name]; !ok || r.Status == fail {
			set[strings.Split(name, "/")[1]] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// hung says whether a test of a function hung: it would again.
func hung(results map[string]result, function string) bool {
	for name, r := range results {
		if strings.Split(name, "/")[1] == function && r.Reason == hungReason {
			return true
		}
	}
	return false
}

// once runs a test binary to its end.
func (s *suite) once(ctx context.Context, g testGroup, top string, functions []string, parallel int) (*output, error) {
	pattern := ".*"
	if len(functions) > 0 {
		pattern = "^(" + strings.Join(functions, "|") + ")$"
	}
	run := fmt.Sprintf("^%s$/%s/^worker=oci$", top, pattern)
	file, err := os.OpenFile(s.layout.path("logs", g.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := os.MkdirAll("/tmp/home", 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, s.layout.testBinary(g.pkg), "-test.v=test2json", "-test.run="+run, "-test.timeout=60m", "-test.parallel=1000")
	if s.learn {
		cmd.Args[len(cmd.Args)-1] = "-test.parallel=1"
	}
	cmd.Dir = filepath.Join(s.upstream, g.pkg)
	cmd.Env = s.environment(g, parallel)
	cmd.WaitDelay = 10 * time.Second
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	parsed := make(chan *output)
	idle := newWatchdog(idleLimit)
	go func() {
		parsed <- parseOutput(io.TeeReader(r, io.MultiWriter(file, idle)), func(name string, res result) { fmt.Fprintf(s.progress, "%s %s %s\n", res.Status, g.name, name) })
	}()
	runErr := idle.run(cmd)
	_ = w.Close()
	out := <-parsed
	if idle.fired {
		out.failHung()
	}
	if exit := new(exec.ExitError); runErr != nil && !errors.As(runErr, &exit) {
		return out, fmt.Errorf("%s: %w", g.name, runErr)
	}
	return out, ctx.Err()
}
