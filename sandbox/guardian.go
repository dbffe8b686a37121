package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/sandbox/reexec"
)

// The death signal of a step's first process ends a step when the engine dies, but a hostile step clears it. A guardian is a process
// of its own that waits for the end of the engine at the other end of a pipe, and kills the control groups of the engine's steps then.
// There is one for a sandbox, started with the first step.
type guardian struct {
	mu    sync.Mutex
	cmd   *exec.Cmd
	pipe  *os.File      // the engine's end
	ended chan struct{} // closed when the process has ended
}

// ward is a guardian's input: which control groups are those of the engine's steps. A new engine of the same state
// directory has other names, so that a guardian never kills its steps.
type ward struct {
	Root   string // the sandbox's state directory
	Group  string // control group of the sandbox
	Prefix string // of the names of the steps' groups
}

// guardianArg is the first argument of a guardian's process.
const guardianArg = "strata-guardian"

// Helper does what a sandbox started this process for, if one did, and does not return then. A program that sets Options.Guarded calls
// it at the start of main.
func Helper() {
	if len(os.Args) != 2 || os.Args[1] != guardianArg {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // it ends after the engine, not with it
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	if err := watch(os.Stdin); err != nil {
		os.Exit(1) // nobody is there to be told
	}
	os.Exit(0)
}

// watch reads what to guard, waits for the end of the pipe, and kills.
func watch(pipe io.Reader) error {
	d := json.NewDecoder(pipe)
	var w ward
	if err := d.Decode(&w); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.MultiReader(d.Buffered(), pipe)); err != nil {
		return err
	}
	c, err := findCgroups()
	if err != nil {
		return err
	}
	return w.kill(c)
}

// patience is how long a guardian tries to kill what does not end, such as a process in a device driver.
const patience = 10 * time.Second

// kill ends all processes in the ward's groups.
func (w *ward) kill(c *cgroups) error {
	for pause := time.Millisecond; ; pause *= 2 {
		left := 0
		for _, group := range w.groups(c) {
			left += c.kill(group)
		}
		if left == 0 {
			return nil
		}
		if pause > patience {
			return fmt.Errorf("%d control groups of steps still have processes", left)
		}
		time.Sleep(pause)
	}
}

// groups are the control groups of the steps, those below a parent of their own included.
func (w *ward) groups(c *cgroups) []string {
	seen := map[string]bool{}
	for _, root := range c.roots {
		below := []string{w.Group}
		for i := 0; i < len(below); i++ {
			entries, _ := os.ReadDir(filepath.Join(root, below[i]))
			for _, e := range entries {
				switch at := filepath.Join(below[i], e.Name()); {
				case e.IsDir() && strings.HasPrefix(e.Name(), w.Prefix):
					seen[at] = true
				case e.IsDir() && below[i] == w.Group && strings.HasPrefix(e.Name(), clientPrefix):
					below = append(below, at)
				}
			}
		}
	}
	for _, g := range recordedGroups(w.Root) {
		if strings.HasPrefix(filepath.Base(g.group), w.Prefix) {
			seen[g.group] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// guard makes sure that the steps' guardian runs.
func (s *Sandbox) guard() error {
	if !s.guarded {
		return nil
	}
	g := &s.guardian
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.alive() {
		return nil
	}
	err := g.start(ward{Root: s.root, Group: s.host.group(s.owner), Prefix: s.idPrefix()})
	if err != nil {
		return diag.Errorf(diag.Unavailable, "cannot start the process that ends steps with the builder: %w", err)
	}
	return nil
}

func (g *guardian) alive() bool {
	if g.cmd == nil {
		return false
	}
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

// start starts the process. It is not waited for: it reads the pipe to its end, even if that comes before its first instruction.
func (g *guardian) start(w ward) error {
	r, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd, started, err := reexec.Command(guardianArg)
	if err != nil {
		pipe.Close()
		return err
	}
	defer started()
	cmd.Dir, cmd.Stdin, cmd.Env = "/", r, []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		pipe.Close()
		return err
	}
	if g.pipe != nil {
		g.pipe.Close() // of one that died
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	g.cmd, g.pipe, g.ended = cmd, pipe, ended
	return json.NewEncoder(pipe).Encode(w)
}

// stop ends the process: no step runs any more.
func (g *guardian) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Signal(unix.SIGKILL) // it may have ended
	<-g.ended
	_ = g.pipe.Close()
	g.cmd = nil
}
