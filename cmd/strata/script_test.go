package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strata-build/strata/engine"
)

// The test binary is the program too, so that scripts run the code under test.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"strata": main})
}

// TestScript runs testdata/script: each script is a directory, a state root of its own, and commands. The conditions are
// [build] (all that steps need: root, overlay and runc), each of these alone, [daemon], and [debian] (mmdebstrap and a mirror). $EXAMPLES are the examples. Besides testscript's commands
// there are
//
//	base [NAME [OPTION...]]  imports a root file system with busybox as the image NAME (default "base")
//	frontend NAME            imports the tests' frontend as the image NAME: the build argument MODE says what it does
//	debian NAME              imports a Debian root file system as the image NAME
//	registry [USER PASSWORD [TOKEN]] starts a registry on the loopback interface; $REGISTRY is its host and port. With TOKEN
//	                         it has a token server
//	serve DIR                serves a directory, and the git repositories in it, over http; $SERVER is the URL
//	noise DIR N SIZE SEED    writes N files of SIZE random bytes into a directory; equal seeds give equal files
//	config NAME FIELD        prints a field of an image's configuration, such as Config.Env
//	files NAME               prints the paths in an image's layers, one line per file: LAYER PATH
//	step PATTERN STATE       checks that the last command showed a step whose name matches: CACHED, DONE or ERROR
//	allcached                checks that the last command ran no RUN, COPY, ADD or WORKDIR
//	leak TEXT                checks that a text is in a file of the state, or of the run-time state; "! leak" that it is in none
//	mounts                   checks that something is mounted below the script's directory; "! mounts" that nothing is
func TestScript(t *testing.T) { runScripts(t, false) }

// TestScriptDaemon runs the same scripts with an engine that stays between commands.
func TestScriptDaemon(t *testing.T) {
	if testing.Short() {
		t.Skip("the scripts run once")
	}
	runScripts(t, true)
}

// scriptsDir has testscript make its directories in one that is removed: with -run it leaves an empty one.
func scriptsDir(t *testing.T) {
	if testWork := flag.Lookup("testwork"); testWork != nil && testWork.Value.String() == "true" {
		return
	}
	dir, err := os.MkdirTemp(os.Getenv("GOTMPDIR"), "strata-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		if err := os.RemoveAll(dir); err != nil || len(left) > 0 {
			t.Errorf("scripts left %v: %v", left, err)
		}
	})
	t.Setenv("GOTMPDIR", dir)
}

func runScripts(t *testing.T, daemon bool) {
	scriptsDir(t)
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			for name, dir := range map[string]string{"STRATA_ROOT": "state", "HOME": "home", "DOCKER_CONFIG": ".docker"} {
				e.Setenv(name, filepath.Join(e.WorkDir, dir))
			}
			config, err := os.OpenFile(filepath.Join(e.WorkDir, "strata.toml"), os.O_CREATE|os.O_RDONLY, 0o644) // unless the script has one
			if err != nil {
				return err
			}
			config.Close()
			e.Setenv("STRATA_CONFIG", config.Name())
			e.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			e.Setenv("STRATA_ALLOW_OLD_RUNC", "1") // of whatever distribution the tests run on
			examples, err := filepath.Abs(filepath.Join("..", "..", "examples"))
			if err != nil {
				return err
			}
			e.Setenv("EXAMPLES", examples)
			if !daemon {
				e.Setenv("STRATA_DAEMON", "off")
			}
			e.Defer(func() { stopDaemon(t, e) })
			return os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o755)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "daemon":
				return daemon, nil
			case "root":
				return os.Geteuid() == 0, nil
			case "overlay":
				return hasOverlay(), nil
			case "runc":
				return inPath("runc"), nil
			case "debian":
				_, err := debianTar()
				return err == nil, nil
			case "build": // all that a build with RUN steps needs
				return os.Geteuid() == 0 && hasOverlay() && inPath("runc") && exists("/bin/busybox"), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"base": cmdBase, "frontend": cmdFrontend, "debian": cmdDebian, "registry": cmdRegistry, "serve": cmdServe, "config": cmdConfig, "files": cmdFiles,
			"step": cmdStep, "allcached": cmdAllCached, "leak": cmdLeak, "mounts": cmdMounts, "noise": cmdNoise,
		},
	})
}

// stopDaemon ends the engine of a script, so that its directory can be removed.
func stopDaemon(t *testing.T, e *testscript.Env) {
	for range 100 {
		cmd := exec.Command("strata", "daemon", "stop")
		cmd.Env = append(cmd.Environ(), "STRATA_ROOT="+e.Getenv("STRATA_ROOT"))
		out, err := cmd.CombinedOutput()
		if err == nil {
			return
		}
		if !strings.Contains(string(out), "in use") {
			t.Errorf("strata daemon stop: %v: %s", err, out)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the engine of the script does not end")
}

func inPath(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

var hasOverlay = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(b), "\toverlay\n")
})

// baseTar is a root file system: busybox, its applets, and the files that every system has.
var baseTar = sync.OnceValues(func() ([]byte, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	when := time.Unix(1_700_000_000, 0)
	add := func(h tar.Header, data string) {
		h.ModTime, h.Size = when, int64(len(data))
		err = errors.Join(err, w.WriteHeader(&h))
		_, e := w.Write([]byte(data))
		err = errors.Join(err, e)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "usr", "usr/bin", "var", "home", "home/app"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(busybox))
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\napp:x:1000:\nextra:x:2000:app\n")
	return b.Bytes(), errors.Join(err, w.Close())
})

func cmdBase(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("base cannot be negated")
	}
	name := "base"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	data, err := baseTar()
	ts.Check(err)
	path := ts.MkAbs(".base.tar")
	ts.Check(os.WriteFile(path, data, 0o644))
	line := []string{"image", "import", "--change", "ENV PATH=/bin:/usr/bin", "--change", `CMD ["sh"]`}
	ts.Check(ts.Exec("strata", append(append(line, args...), path, name)...))
	ts.Check(os.Remove(path))
}

func cmdNoise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: noise DIR N SIZE SEED")
	}
	var n [3]int
	for i, s := range args[1:] {
		var err error
		n[i], err = strconv.Atoi(s)
		ts.Check(err)
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	random := rand.NewChaCha8([32]byte{byte(n[2])})
	for i := range n[0] {
		data := make([]byte, n[1])
		_, _ = random.Read(data)
		ts.Check(os.WriteFile(filepath.Join(dir, "f"+strconv.Itoa(i)), data, 0o644))
	}
}

// frontendTar is a root file system with the frontend that the tests of BuildKit's interface have.
var frontendTar = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "frontend-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/frontend", "../../api/buildkit/testdata/frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return exec.Command("tar", "-C", dir, "-c", "frontend").Output()
})

func cmdFrontend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: frontend NAME")
	}
	data, err := frontendTar()
	ts.Check(err)
	path := ts.MkAbs(".frontend.tar")
	ts.Check(os.WriteFile(path, data, 0o644))
	ts.Check(ts.Exec("strata", "image", "import", "--change", `ENTRYPOINT ["/frontend"]`, "--change", "ENV OWN=1",
		"--change", "LABEL moby.buildkit.frontend.network.none=true moby.buildkit.frontend.caps=moby.buildkit.frontend.subrequests", path, args[0]))
	ts.Check(os.Remove(path))
}

// steps reads the plain progress of the last command: the state by the step's name.
func steps(ts *testscript.TestScript) map[string]string {
	names, out := map[string]string{}, map[string]string{}
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		n, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || !strings.HasPrefix(n, "#") {
			continue
		}
		if names[n] == "" {
			names[n] = rest
			out[rest] = "STARTED"
			continue
		}
		if word, _, _ := strings.Cut(rest, " "); slices.Contains([]string{"DONE", "CACHED", "CANCELED", "ERROR:"}, word) {
			out[names[n]] = strings.TrimSuffix(word, ":")
		}
	}
	return out
}

func cmdStep(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: step PATTERN STATE")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	found := map[string]string{}
	for name, state := range steps(ts) {
		if pattern.MatchString(name) {
			found[name] = state
		}
	}
	if len(found) == 0 && !neg {
		ts.Fatalf("no step matches %s", args[0])
	}
	for name, state := range found {
		if (state == args[1]) == neg {
			ts.Fatalf("step %q is %s", name, state)
		}
	}
}

var instruction = regexp.MustCompile(`^\[.*\d+/\d+\] (RUN|COPY|ADD|WORKDIR)`)

func cmdAllCached(ts *testscript.TestScript, neg bool, args []string) {
	n := 0
	for name, state := range steps(ts) {
		if !instruction.MatchString(name) {
			continue
		}
		if n++; state != "CACHED" && !neg {
			ts.Fatalf("step %q is %s", name, state)
		}
	}
	if n == 0 {
		ts.Fatalf("the last command showed no steps")
	}
}

func cmdLeak(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: leak TEXT")
	}
	var found []string
	look := func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the engine clears up meanwhile
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if bytes.Contains(b, []byte(args[0])) || strings.Contains(path, args[0]) {
			found = append(found, path)
		}
		return err
	}
	root := ts.Getenv("STRATA_ROOT")
	ts.Check(filepath.WalkDir(root, look))
	id, err := engine.RootID(root)
	ts.Check(err)
	ts.Check(filepath.WalkDir(filepath.Join(engine.RunDir(), id), look))
	if neg == (len(found) > 0) {
		ts.Fatalf("%q is in %d files of the state: %q", args[0], len(found), found)
	}
}

func cmdMounts(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile("/proc/self/mounts")
	ts.Check(err)
	if n := strings.Count(string(b), " "+ts.Getenv("WORK")+"/"); neg == (n > 0) {
		ts.Fatalf("%d mounts below %s", n, ts.Getenv("WORK"))
	}
}
