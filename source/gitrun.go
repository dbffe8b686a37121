package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox/restrict"
)

// gitRunner runs git with an environment of its own: nothing of the daemon's configuration, no prompts, no hooks.
type gitRunner struct {
	path string
	env  []string
	name string // the remote, for messages
	way  *gitWay

	dir    string // temporary, of this runner alone
	rights *restrict.Rights
}

// runner prepares git for a remote. done ends the forwarded agent.
func (g *Git) runner(ctx context.Context, op *graph.Git, remote remoteURL) (*gitRunner, func(), error) {
	program, err := exec.LookPath("git")
	if err != nil {
		return nil, nil, diag.Errorf(diag.Unsupported, "a git source needs the git program, which is not installed on the builder").WithHint("install git, or use an http archive of the repository")
	}
	dir, err := os.MkdirTemp("", "strata-git-") // short: the path of the agent's socket has 107 bytes
	if err != nil {
		return nil, nil, err
	}
	run := &gitRunner{path: program, name: remote.arg, env: append(gitEnviron(), "TMPDIR="+dir), dir: dir}
	done, err := g.prepare(ctx, op, remote, run)
	if err != nil {
		run.end()
		return nil, nil, err
	}
	return run, func() { done(); run.end() }, nil
}

// end ends what the runner has started.
func (r *gitRunner) end() {
	r.way.close()
	os.RemoveAll(r.dir)
}

// prepare makes the runner's configuration, its ways to the remote, and its rights.
func (g *Git) prepare(ctx context.Context, op *graph.Git, remote remoteURL, run *gitRunner) (done func(), err error) {
	config := [][2]string{
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"core.alternateRefsCommand", "true"},
		{"safe.directory", "*"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"advice.detachedHead", "false"},
		{"init.defaultBranch", "main"},
		{"protocol.version", "2"},
		{"core.untrackedCache", "false"},
		{"transfer.bundleURI", "false"}, // a server does not choose further addresses
		{"fetch.uriProtocols", ""},
		{"credential.helper", ""},
		{"submodule.recurse", "false"},
	}
	if remote.header != "" { // bound to the host: no submodule elsewhere gets it, and no redirect is followed with it
		config = append(config, [2]string{"http." + remote.origin + ".extraHeader", "Authorization: " + remote.header},
			[2]string{"http." + remote.origin + ".followRedirects", "false"})
	}
	if err := checkHost(ctx, remote.arg, g.env.AllowMetadata); err != nil {
		return nil, err
	}
	if run.way, err = newGitWay(ctx, g.env.AllowMetadata); err != nil {
		return nil, err
	}
	if run.way != nil {
		config = append(config, run.way.config())
		run.env = append(run.env, "NO_PROXY=", "no_proxy=")
	}
	run.env = append(run.env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, kv := range config {
		run.env = append(run.env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	run.rights = gitRights(run, remote)
	return g.ssh(ctx, op, remote, run)
}

// gitEnviron is the environment of git: of the engine's own it has the way to programs, proxies and certificates. No file of
// the machine configures it, and no protocol but these is spoken, by submodules neither: "file" and "ext" would read the host
// and run programs.
func gitEnviron() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true",
		"GIT_ALLOW_PROTOCOL=http:https:git:ssh", "GIT_NO_LAZY_FETCH=1",
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// ssh says how git reaches ssh servers, those of submodules too: without any configuration or key of this machine, and with the
// client's agent only if the source itself is reached by ssh. Without known hosts the first key that a host shows is taken.
func (g *Git) ssh(ctx context.Context, op *graph.Git, remote remoteURL, run *gitRunner) (func(), error) {
	command := "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none"
	known := filepath.Join(run.dir, "known_hosts")
	if op.KnownHosts != "" {
		if err := os.WriteFile(known, []byte(op.KnownHosts), 0o600); err != nil {
			return nil, err
		}
		command += " -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null"
	} else {
		command += " -o StrictHostKeyChecking=accept-new"
	}
	command += " -o UserKnownHostsFile=" + known
	if !remote.ssh || g.env.Session == nil {
		run.env = append(run.env, "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND="+command+" -o IdentityAgent=none")
		return func() {}, nil
	}
	run.env = append(run.env, "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND="+command)
	return g.agent(ctx, op, run)
}

// agent lets ssh reach the client's agent.
func (g *Git) agent(ctx context.Context, op *graph.Git, run *gitRunner) (func(), error) {
	if err := g.checkAgent(ctx, op); err != nil {
		return nil, err
	}
	sock := filepath.Join(run.dir, "agent")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, diag.Errorf(diag.Internal, "cannot forward the ssh agent: %w", err)
	}
	run.env = append(run.env, "SSH_AUTH_SOCK="+sock)
	run.rights.UnixSockets = true
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go g.forward(ctx, op.SSH, conn)
		}
	}()
	return func() { cancel(); l.Close() }, nil
}

// checkAgent refuses to begin without the agent that the source names: ssh would only say that permission was denied.
func (g *Git) checkAgent(ctx context.Context, op *graph.Git) error {
	if op.SSH == "" || g.env.Session == nil {
		return nil
	}
	agent, err := g.env.Session.SSH(ctx, op.SSH)
	if err == nil {
		return agent.Close()
	}
	if diag.KindOf(err) != diag.NotFound {
		return err
	}
	return diag.Errorf(diag.NotFound, "%s: no SSH key %q forwarded from the client", op.Remote, op.SSH).WithHint("give it with --ssh %s", op.SSH)
}

// forward copies between ssh and the client's agent until one of them ends.
func (g *Git) forward(ctx context.Context, id string, conn net.Conn) {
	defer conn.Close()
	agent, err := g.env.Session.SSH(ctx, id)
	if err != nil {
		return // ssh goes on without an agent and says what it lacks
	}
	defer agent.Close()
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(agent, conn); ended <- struct{}{} }()
	go func() { _, _ = io.Copy(conn, agent); ended <- struct{}{} }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// git runs git in dir and returns what it prints. The whole process group is killed with ctx, since git starts helpers.
func (r *gitRunner) git(ctx context.Context, dir string, args ...string) (string, error) {
	return r.gitEnv(ctx, dir, nil, args...)
}

func (r *gitRunner) gitEnv(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := r.command(ctx, dir, args)
	cmd.Env = append(cmd.Env, env...)
	out, errs := &capped{limit: 64 << 20}, &capped{limit: 64 << 10}
	cmd.Stdout, cmd.Stderr = out, errs
	err := r.wait(cmd)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if out.over {
		return "", diag.Errorf(diag.Exhausted, "git %s: more than %d bytes of output", args[0], out.limit)
	}
	if err != nil {
		return "", r.explain(args, errs.String(), err)
	}
	return out.String(), nil
}

// command makes a git whose process group is killed with ctx.
func (r *gitRunner) command(ctx context.Context, dir string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.path, args...)
	if cmd.Dir = dir; dir == "" { // not the engine's, where there may be a repository
		cmd.Dir = r.dir
	}
	cmd.Env = append([]string(nil), r.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// wait runs git with its rights.
func (r *gitRunner) wait(cmd *exec.Cmd) error {
	if err := restrict.Start(cmd, r.rights); err != nil {
		return err
	}
	return cmd.Wait()
}

// said runs git and returns what it says on stderr.
func (r *gitRunner) said(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := r.command(ctx, dir, args)
	errs := &capped{limit: 64 << 10}
	cmd.Stderr = errs
	err := r.wait(cmd)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", r.explain(args, errs.String(), err)
	}
	return errs.String(), nil
}

// capped keeps the first bytes of an output.
type capped struct {
	bytes.Buffer
	limit int
	over  bool
}

func (c *capped) Write(p []byte) (int, error) {
	if room := c.limit - c.Len(); len(p) > room {
		c.over = true
		c.Buffer.Write(p[:room])
		return len(p), nil
	}
	return c.Buffer.Write(p)
}

// explain makes an error of git's last lines.
func (r *gitRunner) explain(args []string, stderr string, err error) error {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := lines[len(lines)-1]
	for _, l := range lines {
		if strings.HasPrefix(l, "fatal: ") {
			last = strings.TrimPrefix(l, "fatal: ")
			break
		}
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return diag.Errorf(diag.Internal, "cannot run git: %w", err)
	}
	if why := r.way.why(); why != nil {
		return fmt.Errorf("git %s of %s: %w", args[0], r.name, why)
	}
	kind, hint := diag.Unavailable, ""
	low := strings.ToLower(stderr)
	switch {
	case strings.Contains(low, "repository") && strings.Contains(low, "not found"), strings.Contains(low, "does not appear to be a git repository"), strings.Contains(low, "does not exist"):
		kind, hint = diag.NotFound, "check the URL; a private repository needs a token (secret GIT_AUTH_TOKEN) or an ssh agent"
	case strings.Contains(low, "could not read username"), strings.Contains(low, "authentication failed"), strings.Contains(low, "permission denied"), strings.Contains(low, "403"):
		kind, hint = diag.Denied, "give a token as the secret GIT_AUTH_TOKEN, or an ssh agent"
	case strings.Contains(low, "host key verification failed"):
		kind, hint = diag.Denied, "the known hosts that were given do not have the host's key"
	case strings.Contains(low, "transport") && strings.Contains(low, "not allowed"):
		kind = diag.Denied
	}
	e := diag.Errorf(kind, "git %s of %s: %s", args[0], r.name, last)
	e.Log = lines[max(0, len(lines)-10):]
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}
