package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/api/local"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// builder is the engine: in this process, or in the one that owns the root.
type builder interface {
	Build(ctx context.Context, r engine.Request, s session.Session, sink event.Sink) (*engine.Response, error)
	Run(ctx context.Context, r engine.RunRequest, s session.Session, sink event.Sink) (int, error)
	Close() error
	images
	state
}

type images interface {
	Images(ctx context.Context) ([]engine.ImageInfo, error)
	InspectImage(ctx context.Context, name string) (*engine.ImageInfo, error)
	RemoveImage(ctx context.Context, name string) error
	TagImage(ctx context.Context, src, dst string) error
	transfers
}

type transfers interface {
	SaveImages(ctx context.Context, w io.Writer, names []string, format string) error
	LoadImages(ctx context.Context, r io.Reader) ([]string, error)
	ImportImage(ctx context.Context, r io.Reader, opt engine.ImportOptions) (*engine.ImageInfo, error)
	PushImage(ctx context.Context, name string, s session.Session, sink event.Sink) (string, error)
	PullImage(ctx context.Context, name string, p []graph.Platform, s session.Session, sink event.Sink) (*engine.ImageInfo, error)
}

type state interface {
	Prune(ctx context.Context, p engine.PrunePolicy) (*engine.PruneReport, error)
	PruneImages(ctx context.Context, until time.Duration, dryRun bool) (*engine.PruneReport, error)
	Usage(ctx context.Context) ([]engine.UsageItem, error)
	Check(ctx context.Context, full, repair bool) ([]engine.Problem, error)
}

var (
	_ builder = (*engine.Engine)(nil)
	_ builder = (*local.Client)(nil)
)

// defaultIdle is how long an engine that a command started waits for the next one.
const defaultIdle = 5 * time.Minute

// open returns the engine of the state root: the one that serves it, one that is started for it, or, without a daemon, one
// in this process.
func (c *cli) open(ctx context.Context) (builder, error) {
	if c.inProcess() {
		return c.openHere(ctx)
	}
	args, err := c.daemonArgs()
	if err != nil {
		return nil, err
	}
	client, err := local.Connect(c.root, args, func(text string) { fmt.Fprintln(c.err, text) })
	if err == nil && c.configNamed {
		c.warnOfConfig(ctx, client)
	}
	return client, err
}

// warnOfConfig prints a warning if the engine that runs has read another configuration than the one that this command names.
func (c *cli) warnOfConfig(ctx context.Context, client *local.Client) {
	read, err := client.Config(ctx)
	if err != nil || read == "" || read == c.absConfig() {
		return // the command itself reports an engine that does not answer
	}
	fmt.Fprintf(c.err, "warning: the configuration %s has no effect: the engine that runs has read %s; end it first with: strata daemon stop\n", c.config, read)
}

// absConfig is the path of the configuration as the engine reports it.
func (c *cli) absConfig() string {
	path, err := filepath.Abs(c.config)
	if err != nil {
		return c.config
	}
	return path
}

// inProcess reports whether the command itself is to run the engine.
func (c *cli) inProcess() bool {
	return c.noDaemon || os.Getenv("STRATA_DAEMON") == "off" || c.debug
}

// daemonArgs is the command line of an engine with this one's settings.
func (c *cli) daemonArgs() ([]string, error) {
	root, err := filepath.Abs(c.root)
	if err != nil {
		return nil, err
	}
	config, err := filepath.Abs(c.config)
	if err != nil {
		return nil, err
	}
	args := []string{"daemon", "serve", "--ready", "--idle", defaultIdle.String(), "--root", root}
	if c.configNamed { // else a missing file is no error there either
		args = append(args, "--config", config)
	}
	if c.runtime != "" {
		args = append(args, "--runtime", c.runtime)
	}
	return args, nil
}

func newDaemon(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon COMMAND",
		Short: "Control the process that keeps the engine warm",
		Long: "Control the process that keeps the engine warm.\n\n" +
			"The first command that needs the engine of a state root starts it in the background; it ends when nobody has used it\n" +
			"for some minutes. With --no-daemon, or STRATA_DAEMON=off in the environment, a command runs the engine itself.",
		RunE: group, Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newDaemonServe(c), newDaemonStop(c), newDaemonStatus(c))
	return cmd
}

func newDaemonServe(c *cli) *cobra.Command {
	var idle time.Duration
	var ready bool
	cmd := &cobra.Command{
		Use:         "serve [OPTIONS]",
		Short:       "Run the engine in the foreground",
		Annotations: map[string]string{ownsEngine: "yes"},
		Args:        args(0, 0, "no arguments"),
		RunE:        func(cmd *cobra.Command, _ []string) error { return c.serve(cmd.Context(), idle, ready) },
	}
	cmd.Flags().DurationVar(&idle, "idle", 0, "End after this time without a command; 0 is never")
	bytesFlag(cmd.Flags(), "gc-bytes", "Keep the state below this size (default chosen by the disk; $STRATA_GC_BYTES)", &c.gcBytes)
	cmd.Flags().BoolVar(&ready, "ready", false, "Tell on file descriptor 3 when it is ready")
	_ = cmd.Flags().MarkHidden("ready") // fails for unknown flags only
	return cmd
}

func (c *cli) serve(ctx context.Context, idle time.Duration, ready bool) (err error) {
	say := func(error) {}
	if ready {
		signal.Ignore(syscall.SIGINT, syscall.SIGHUP) // Ctrl-C is for the command
		pipe := os.NewFile(3, "ready")
		unix.CloseOnExec(3)
		say = func(err error) { local.Ready(pipe, err) }
	}
	eng, err := c.openServed(ctx, ready)
	if err != nil || eng == nil {
		say(err)
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	l, err := local.Listen(c.root)
	say(err)
	if err != nil {
		return diag.Errorf(diag.Unavailable, "the engine cannot be served: %w", err)
	}
	return local.Serve(ctx, l, eng, local.ServeOptions{Idle: idle, Exe: local.Executable(), Log: c.logger(), Config: c.absConfig()})
}

// openServed opens the engine to be served. A process that a command started is not needed if another one, which was
// started at the same time, serves the root: then it returns nil when that one listens.
func (c *cli) openServed(ctx context.Context, ready bool) (*engine.Engine, error) {
	for {
		opt, err := c.engineOptions()
		if err != nil {
			return nil, err
		}
		opt.Serves = true
		eng, err := engine.Open(ctx, opt)
		held, ok := errors.AsType[*engine.InUse](err)
		if !ready || !ok || !held.Serves {
			return eng, err
		}
		other, err := local.Dial(c.root)
		if err != nil {
			return nil, err
		}
		if _, err := other.Ping(ctx); err == nil {
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		time.Sleep(5 * time.Millisecond) // until it listens, or is gone
	}
}

func newDaemonStop(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the engine's process, if nobody uses it",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := local.Dial(c.root)
			if err != nil {
				return err
			}
			return b.Stop(cmd.Context())
		},
	}
}

func newDaemonStatus(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether an engine serves the state root",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := local.Dial(c.root)
			if err != nil {
				return err
			}
			pid, err := b.Ping(cmd.Context())
			if diag.KindOf(err) == diag.NotFound {
				fmt.Fprintf(c.out, "no engine serves %s\n", c.root)
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "process %d serves %s\n", pid, c.root)
			return nil
		},
	}
}

func (c *cli) logger() *slog.Logger {
	level := slog.LevelError // what users should know comes as an event
	if c.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(diag.RedactWriter(c.err), &slog.HandlerOptions{Level: level}))
}
