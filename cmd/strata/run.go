package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/strata-build/strata/cmd/strata/progress"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
)

func newRun(c *cli) *cobra.Command {
	var req engine.RunRequest
	var interactive bool
	cmd := &cobra.Command{
		Use: "run [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Run a command in a new container of an image", Args: args(1, -1, "an image"),
		Long: "Run a command in a new container of an image.\n\nThe container's changes are thrown away when the command ends; strata ends with the command's exit code.",
		Example: "  strata run -it debian:12 bash\n" +
			"  strata run -v $PWD:/src -w /src golang:1.26 go test ./...",
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // what follows the image belongs to the command
	fs.BoolVarP(&interactive, "interactive", "i", false, "Give standard input to the command")
	fs.BoolVarP(&req.TTY, "tty", "t", false, "Give a terminal to the command")
	fs.VarP(&parsed{kind: "list", set: func(s string) error {
		k, v, ok, err := parseVariable(s)
		if ok {
			req.Env = append(req.Env, k+"="+v)
		}
		return err
	}}, "env", "e", "Set a variable: NAME=VALUE, or NAME for its value in the environment")
	fs.StringVarP(&req.User, "user", "u", "", "User, and group after a colon: names or numbers")
	fs.StringVarP(&req.Cwd, "workdir", "w", "", "Working directory")
	fs.StringVar(&req.Hostname, "hostname", "", "Host name")
	fs.Bool("rm", true, "Remove the container when it ends (always done)")
	parsedFlag(fs, spec{"network", "mode", "", "Network: default, none or host"}, parseNetwork, func(n graph.Network) { req.Network = n })
	parsedFlag(fs, spec{"add-host", "list", "", "Add a line to /etc/hosts: HOST:IP"}, parseHost, func(h graph.HostIP) { req.ExtraHosts = append(req.ExtraHosts, h) })
	parsedFlag(fs, spec{"volume,v", "list", "", "Mount a file or directory: SOURCE:TARGET[:ro]"}, parseBind, func(b engine.Bind) { req.Binds = append(req.Binds, b) })
	fs.BoolVar(&req.ReadOnly, "read-only", false, "Make the root file system read-only")
	memoryFlag(fs, "Memory limit", &req.Limits.Memory)
	parsedFlag(fs, spec{"platform", "platform", "", "Platform of the image (default that of this machine)"}, parsePlatform, func(p graph.Platform) { req.Platform = p })
	fs.Var(&parsed{kind: "command", set: func(s string) error {
		req.Entrypoint = []string{s}
		if s == "" {
			req.Entrypoint = []string{}
		}
		return nil
	}}, "entrypoint", `Replace the image's entrypoint; "" is none`)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := needsRoot(cmd); err != nil {
			return err
		}
		req.Image, req.Args = args[0], args[1:]
		return c.run(cmd.Context(), req, interactive)
	}
	return cmd
}

// parseBind reads "SOURCE:TARGET[:ro|:rw]".
func parseBind(s string) (engine.Bind, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !strings.HasPrefix(parts[1], "/") {
		return engine.Bind{}, invalid("it must be SOURCE:TARGET[:ro], with an absolute TARGET")
	}
	b := engine.Bind{Target: parts[1]}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			b.ReadOnly = true
		case "rw":
		default:
			return engine.Bind{}, invalid("the last part must be ro or rw, not %q", parts[2])
		}
	}
	abs, err := filepath.Abs(parts[0])
	if err != nil {
		return engine.Bind{}, invalid("%s", err)
	}
	if !exists(abs) {
		return engine.Bind{}, invalid("%s does not exist", abs)
	}
	b.Source = abs
	return b, nil
}

// run runs a container and ends with its command's code.
func (c *cli) run(ctx context.Context, req engine.RunRequest, interactive bool) error {
	req.Stdout, req.Stderr = c.out, c.err
	if interactive {
		req.Stdin = c.in
	}
	sess, err := session.NewLocal(session.LocalOptions{Credential: registry.DockerCredentials("")})
	if err != nil {
		return err
	}
	return c.with(ctx, func(eng builder) error {
		if err := c.fetch(ctx, eng, sess, req); err != nil {
			return err
		}
		if req.TTY {
			restore, err := c.terminal(ctx, &req)
			if err != nil {
				return err
			}
			defer restore()
		}
		code, err := eng.Run(ctx, req, sess, nil)
		if err == nil && code != 0 {
			err = exitCode(code)
		}
		return err
	})
}

// fetch pulls an image that is not in the store, with a display that is over when the container begins.
func (c *cli) fetch(ctx context.Context, eng builder, sess session.Session, req engine.RunRequest) error {
	var platforms []graph.Platform
	if req.Platform.OS != "" {
		platforms = []graph.Platform{req.Platform}
	}
	_, err := eng.InspectImage(ctx, req.Image)
	if diag.KindOf(err) != diag.NotFound {
		return err
	}
	show := c.display(progress.Auto)
	_, err = eng.PullImage(ctx, req.Image, platforms, sess, show.Sink())
	show.Close(err)
	return err
}

// terminal makes the user's terminal a pass-through to the container's, and follows its size.
func (c *cli) terminal(ctx context.Context, req *engine.RunRequest) (restore func(), err error) {
	in, ok := c.in.(*os.File)
	if !ok || !isTerminal(in) {
		return nil, diag.Errorf(diag.Invalid, "--tty needs a terminal on standard input").WithHint("leave out --tty in scripts")
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, diag.Errorf(diag.Internal, "the terminal: %w", err)
	}
	sizes, changed := make(chan engine.WinSize, 1), make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(sizes)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				if cols, rows, err := term.GetSize(int(in.Fd())); err == nil {
					select {
					case sizes <- engine.WinSize{Rows: uint16(rows), Cols: uint16(cols)}:
					case <-ctx.Done():
						return
					}
				}
			}
		}
	}()
	req.Resize = sizes
	return func() {
		cancel()
		signal.Stop(changed)
		// The program ends now: there is nothing to do about a terminal that cannot be restored.
		_ = term.Restore(int(in.Fd()), old)
	}, nil
}
