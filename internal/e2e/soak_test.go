package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// usage is what a process uses.
type usage struct{ rss, fds, threads int }

func (s *site) usage() usage {
	s.t.Helper()
	pid := s.engine()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	fds, ferr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || ferr != nil {
		s.t.Fatalf("there is no engine: %v, %v", err, ferr)
	}
	field := func(name string) int {
		_, rest, _ := strings.Cut(string(status), "\n"+name+":")
		n, _ := strconv.Atoi(strings.Fields(rest)[0])
		return n
	}
	return usage{rss: field("VmRSS") << 10, fds: len(fds), threads: field("Threads")}
}

// goroutines ends the engine with the signal that makes the language's runtime report them, and counts those that the
// program itself started, with their report.
func (s *site) goroutines() (n int, report string) {
	s.t.Helper()
	pid := s.engine()
	_ = syscall.Kill(pid, syscall.SIGQUIT)
	s.wait("the engine's end", func() bool { return !alive(pid) })
	log, err := os.ReadFile(filepath.Join(s.root, "daemon.log"))
	if err != nil || !bytes.Contains(log, []byte("SIGQUIT")) {
		s.t.Fatalf("no report: %v", err)
	}
	for part := range strings.SplitSeq(string(log), "\n\n") {
		if strings.HasPrefix(part, "goroutine ") && (strings.Contains(part, "strata-build/strata") || strings.Contains(part, "os/exec")) {
			n++
			report += part + "\n\n"
		}
	}
	if err := os.Truncate(filepath.Join(s.root, "daemon.log"), 0); err != nil {
		s.t.Fatal(err)
	}
	s.ok("image", "ls")
	return n, report
}

// soak runs builds of changing content, failing ones among them.
func (s *site) soak(from, to int) {
	s.t.Helper()
	for i := from; i < to; i++ {
		s.write("salt", fmt.Sprint(i/2)) // every other build is all cached
		args := []string{"--build-arg", fmt.Sprint("SALT=", i/2)}
		switch {
		case i%10 == 7: // one that fails
			if r := s.run("build", "--progress=plain", "-f", "Fails", "--build-arg", fmt.Sprint("SALT=", i), "."); r.code != 1 {
				s.t.Fatalf("build %d: code %d\n%s", i, r.code, r.err)
			}
		case i%10 == 9: // one that is cancelled
			p := s.start("build", "--progress=plain", "-f", "Waits", "--build-arg", fmt.Sprint("SALT=", i), ".")
			p.until(" begun")
			p.kill([]syscall.Signal{syscall.SIGINT, syscall.SIGKILL}[i/10%2])
			p.result()
		default:
			if r := s.build(args...); r.code != 0 {
				s.t.Fatalf("build %d: code %d\n%s", i, r.code, r.err)
			}
		}
	}
	s.wait("the end of all steps", func() bool { return len(s.leftOfSteps()) == 0 })
}

// TestSoak runs many builds against one engine, which must not grow.
func TestSoak(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base AS a\nARG SALT\nCOPY salt /salt\nRUN --mount=type=cache,target=/c echo $SALT > /c/x\nFROM base\nARG SALT\nRUN echo $SALT > /b\nCOPY --from=a /salt /\n")
	s.write("Fails", "FROM base\nARG SALT\nRUN echo $SALT && exit 3\n")
	s.write("Waits", "FROM base\nARG SALT\nRUN echo be\"\"gun $SALT && sleep 1000\n")
	builds := 200
	if testing.Short() {
		builds = 30
	}
	s.soak(0, 20)
	few, _ := s.goroutines()
	s.soak(20, 40)
	before := s.usage()
	s.soak(40, 40+builds)
	s.wait("descriptors to be closed", func() bool { return s.usage().fds <= before.fds+2 })
	after := s.usage()
	t.Logf("before %+v, after %+v", before, after)
	if after.rss > before.rss+32<<20 {
		t.Errorf("the engine has grown from %d to %d MiB", before.rss>>20, after.rss>>20)
	}
	if after.threads > before.threads+8 { // the runtime starts some when many calls block at once, and keeps them
		t.Errorf("the engine has %d threads, before %d", after.threads, before.threads)
	}
	// What leaks, leaks with every build; one more may just be writing to the disk.
	if many, report := s.goroutines(); many > few+builds/20 {
		t.Errorf("the engine has %d goroutines, %d after few builds:\n%s", many, few, report)
	}
	s.healthy()
}

// TestManyClients builds equal and different things at the same time. Equal steps run once, and every image is right.
func TestManyClients(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	const clients, kinds = 20, 4
	for k := range kinds {
		s.write(fmt.Sprint("Dockerfile.", k), fmt.Sprintf(`FROM base AS common
RUN --mount=type=cache,target=/c,sharing=locked echo common >> /c/runs && sleep 0.1 && echo common > /common
FROM common
RUN --mount=type=cache,target=/c,sharing=locked echo kind%d >> /c/runs && sleep 0.05 && echo %d > /kind
COPY content.%d /content
`, k, k, k))
		s.write(fmt.Sprint("content.", k), strings.Repeat(fmt.Sprint("content ", k, "\n"), 1000))
	}
	procs := make([]*proc, clients)
	for i := range clients {
		k := i % kinds
		procs[i] = s.start("build", "--progress=plain", "-f", fmt.Sprint("Dockerfile.", k), "-t", fmt.Sprint("app", i), "-o", fmt.Sprint("type=local,dest=out", i), "--load", ".")
	}
	for i, p := range procs {
		if r := p.result(); r.code != 0 {
			t.Fatalf("client %d: %s", i, r.err)
		}
	}
	for i := range clients {
		k := i % kinds
		kind, _ := os.ReadFile(filepath.Join(s.dir, fmt.Sprint("out", i), "kind"))
		content, _ := os.ReadFile(filepath.Join(s.dir, fmt.Sprint("out", i), "content"))
		if string(kind) != fmt.Sprintln(k) || string(content) != strings.Repeat(fmt.Sprint("content ", k, "\n"), 1000) {
			t.Errorf("client %d has the result of another: kind %q", i, kind)
		}
		if got, want := s.layers(fmt.Sprint("app", i)), s.layers(fmt.Sprint("app", k)); !slices.Equal(got, want) {
			t.Errorf("client %d: %v, want %v", i, got, want)
		}
	}
	cache, _ := filepath.Glob(filepath.Join(s.root, "mounts", "*", "runs"))
	if len(cache) != 1 {
		t.Fatalf("cache mounts: %q", cache)
	}
	runs, err := os.ReadFile(cache[0])
	if err != nil {
		t.Fatal(err)
	}
	ran := strings.Fields(string(runs))
	slices.Sort(ran)
	if want := []string{"common", "kind0", "kind1", "kind2", "kind3"}; !slices.Equal(ran, want) {
		t.Errorf("the steps ran %q, want %q", ran, want)
	}
	s.healthy()
}

// stateBytes is what the state says that it takes.
func (s *site) stateBytes() (total int64) {
	s.t.Helper()
	var items []struct{ Size int64 }
	if err := json.Unmarshal([]byte(s.ok("du", "--format", "json").out), &items); err != nil {
		s.t.Fatal(err)
	}
	for _, it := range items {
		total += it.Size
	}
	return total
}

// diskBytes is what the layers and blobs take on the disk.
func (s *site) diskBytes() (total int64) {
	for _, dir := range []string{"snapshots", "blobs", "mounts"} {
		for _, f := range s.files(dir) {
			if st, err := os.Lstat(f); err == nil {
				total += st.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
	}
	return total
}

// TestGC keeps the state below a small cap while content changes. Images go on working.
func TestGC(t *testing.T) {
	needBuild(t)
	const limit = 48 << 20
	for name, configure := range map[string]func(s *site){
		"environment": func(s *site) { s.env = append(s.env, "STRATA_GC_BYTES=48m") },
		"flag": func(s *site) {
			s.start("daemon", "serve", "--gc-bytes", "48m")
			s.wait("the engine", func() bool { return strings.HasPrefix(s.run("daemon", "status").out, "process ") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			configure(s)
			s.base()
			s.write("Keep", "FROM base\nRUN echo keep > /keep && touch -d @1 /keep /\n")
			s.ok("build", "--progress=plain", "-f", "Keep", "-t", "keep", ".")
			want := s.layers("keep")
			s.write("Dockerfile", "FROM base\nARG SALT\nRUN dd if=/dev/urandom of=/big bs=1M count=8\nCOPY salt /salt\nRUN echo $SALT > /c\n")
			builds := 25
			if testing.Short() {
				builds = 10
			}
			for i := range builds {
				s.write("salt", strings.Repeat(fmt.Sprint(i), 100_000))
				// The newest image replaces the one before it, which may go then.
				s.ok("build", "--progress=plain", "--no-cache", "--build-arg", fmt.Sprint("SALT=", i), "-t", "newest", ".")
				s.wait("the state to be below its cap", func() bool { return s.stateBytes() <= limit })
			}
			s.wait("the disk to be below the cap", func() bool { return s.diskBytes() <= limit })
			if r := s.ok("run", "newest", "cat", "/c"); r.out != fmt.Sprintln(builds-1) {
				t.Errorf("the newest image: %q", r.out)
			}
			if r := s.ok("run", "keep", "cat", "/keep"); r.out != "keep\n" || !slices.Equal(s.layers("keep"), want) {
				t.Errorf("the oldest image: %q", r.out)
			}
			s.ok("image", "save", "-o", filepath.Join(s.dir, "..", "keep.tar"), "keep")
			s.healthy()
			s.ok("daemon", "stop")
		})
	}
	s := newSite(t)
	s.env = append(s.env, "STRATA_GC_BYTES=plenty")
	s.fails(s.run("image", "ls"), "STRATA_GC_BYTES", "plenty", "number of bytes")
}
