// Command strata builds container images and works with them.
//
// It turns flags into requests to the engine, shows what the engine says, and has no logic of its own. Progress and errors
// go to standard error, results to standard output. The exit code is 0 if all went well, 1 if not, 130 after Ctrl-C; run
// ends with the code of its command.
//
// docs/commands, one page per command, is generated from the commands themselves:
//
//go:generate go test -run TestCommandDocs -update
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/api/local"
	"github.com/strata-build/strata/cmd/strata/progress"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/sandbox/reexec"
	"github.com/strata-build/strata/tracing"
)

func main() {
	sandbox.Helper()
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, reexec: reexec.Protect}
	os.Exit(c.execute(arguments(os.Args)))
}

// arguments is the command line without the program's name: called as BuildKit's daemon, the program is one.
func arguments(argv []string) []string {
	if filepath.Base(argv[0]) == "buildkitd" {
		return append([]string{"serve", "--as-buildkitd"}, argv[1:]...)
	}
	return argv[1:]
}

// exitCode is the end of a command that ran to its end, with a code of its own.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// execute is the program; it returns the exit code.
func (c *cli) execute(args []string) int {
	ctx, stop := c.interruptible()
	defer stop()
	root := newRoot(c)
	c.args = args
	root.SetArgs(args)
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := root.ExecuteContext(ctx)
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		fmt.Fprintln(c.err, "canceled")
		return 130
	}
	diag.Render(c.err, err)
	return 1
}

// interruptible returns a context that the first Ctrl-C (or SIGTERM) cancels; the second ends the program.
func (c *cli) interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
		case <-done:
			return
		}
		const text = "stopping; press Ctrl-C again to stop at once"
		if d := c.shown.Load(); d == nil || !d.Say(text) {
			fmt.Fprintln(c.err, "\r"+text)
		}
		cancel(diag.Errorf(diag.Canceled, "canceled by the user"))
		select {
		case <-signals:
			// The display may have hidden the cursor.
			fmt.Fprint(c.err, showCursor(c.err))
			os.Exit(130)
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

func showCursor(w io.Writer) string {
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		return "\x1b[?25h"
	}
	return ""
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// cli is what the commands share: the standard streams and the global flags.
type cli struct {
	in       io.Reader
	out, err io.Writer
	shown    atomic.Pointer[progress.Display] // the latest display
	reexec   func() error                     // runs this program again so that steps cannot write to it; nil in tests

	args                  []string
	root, config, runtime string
	configNamed           bool // the configuration file is not the default
	gcBytes               int64
	debug, noDaemon       bool
}

// openHere opens the engine of the state root in this process.
func (c *cli) openHere(ctx context.Context) (*engine.Engine, error) {
	opt, err := c.engineOptions()
	if err != nil {
		return nil, err
	}
	eng, err := engine.Open(ctx, opt)
	if held, ok := errors.AsType[*engine.InUse](err); !ok || !held.Serves {
		return eng, err
	}
	// An engine that a command has started, and that nobody uses, hands the root over.
	idle, derr := local.Dial(c.root)
	if derr != nil || idle.Stop(ctx) != nil {
		return nil, err
	}
	return engine.Open(ctx, opt)
}

// needsRoot is the error of commands that run steps without the rights for it.
func needsRoot(cmd *cobra.Command) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return diag.Errorf(diag.Denied, "Strata needs root here").WithHint("sudo %s …", cmd.CommandPath())
}

// prepare is what every command begins with.
func (c *cli) prepare(cmd *cobra.Command, _ []string) error {
	if err := c.findConfig(cmd.Flags().Changed("config")); err != nil {
		return err
	}
	c.protect(cmd)
	return nil
}

// findConfig refuses a configuration file that was named, by a flag or the environment, and does not exist.
func (c *cli) findConfig(byFlag bool) error {
	what := "--config"
	if !byFlag {
		what = "STRATA_CONFIG"
		if os.Getenv(what) == "" {
			return nil // the default file need not exist
		}
	}
	c.configNamed = true
	return configExists(c.config, what)
}

// configExists refuses a configuration file that a flag or variable, what, names and that is not there.
func configExists(path, what string) error {
	if _, err := os.Stat(path); err != nil {
		return diag.Errorf(diag.NotFound, "cannot read the configuration file %q of %s: %w", path, what, err).
			WithHint("name a file that exists, or omit %s to use the default settings", what)
	}
	return nil
}

// protect runs the program again from an executable that build steps cannot write to, if the command runs the engine in this
// process. Only root runs steps; where it is impossible, the engine says what it needs when the first step comes.
func (c *cli) protect(cmd *cobra.Command) {
	if c.reexec == nil || os.Geteuid() != 0 || !c.inProcess() && cmd.Annotations[ownsEngine] == "" {
		return
	}
	if err := c.reexec(); err != nil {
		c.logger().Warn("the builder cannot be run from a read-only mount", "err", err)
	}
}

// ownsEngine is an annotation of commands that run the engine in their process in any case.
const ownsEngine = "engine"

func (c *cli) engineOptions() (engine.Options, error) {
	opt := engine.Options{
		Root: c.root, RegistryConfig: c.config, Runtime: c.runtime, Guarded: true, GCBytes: c.gcBytes, Log: c.logger(),
		CgroupParents: []string{"/"}, Agent: "strata/" + version + " buildkit/" + buildkit.Protocol,
		Frontend: buildkit.Frontend(buildkit.Options{Version: version}),
	}
	if s := os.Getenv("STRATA_GC_BYTES"); s != "" && opt.GCBytes == 0 {
		n, err := parseBytes(s)
		if err != nil {
			return opt, diag.Errorf(diag.Invalid, "STRATA_GC_BYTES is %q: %w", s, err)
		}
		opt.GCBytes = n
	}
	var err error
	if opt.AllowMetadata, err = allows("STRATA_ALLOW_METADATA"); err != nil {
		return opt, err
	}
	if opt.OldRuntime, err = allows("STRATA_ALLOW_OLD_RUNC"); err != nil {
		return opt, err
	}
	if opt.Caches, err = cacheRules(c.config); err != nil {
		return opt, err
	}
	if opt.Steps, err = loadSteps(c.config); err != nil {
		return opt, err
	}
	opt.Tracer, err = tracing.New(context.Background(), version, false)
	return opt, err
}

// allows reads a variable by which the operator allows what is refused otherwise.
func allows(name string) (bool, error) {
	s := os.Getenv(name)
	if s == "" {
		return false, nil
	}
	allow, err := strconv.ParseBool(s)
	if err != nil {
		return false, diag.Errorf(diag.Invalid, "%s is %q: it must be 1 or 0", name, s)
	}
	return allow, nil
}

// with opens the engine for one call.
func (c *cli) with(ctx context.Context, f func(builder) error) (err error) {
	eng, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	return f(eng)
}

// display starts a progress display on standard error.
func (c *cli) display(mode progress.Mode) *progress.Display {
	_, noColor := os.LookupEnv("NO_COLOR")
	d := progress.New(progress.Options{Mode: mode, Out: c.err, Color: !noColor, ASCII: !utf8Locale()})
	c.shown.Store(d)
	return d
}

// utf8Locale tells from the locale's variables, the first that is set, whether the terminal shows UTF-8.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return true
}
