package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	gcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/strata-build/strata/image"
)

// tortureRounds is how many rounds a plain go test makes, and tortureEdits how many builds of each are compared.
const (
	tortureRounds = 4
	tortureEdits  = 5
)

// TestTorture compares warm with cold: whatever a root has built, pruned, imported or lost in a kill before, a build there
// makes what a build in an empty root makes. The generator of a seed makes a project and edits of it; between the builds the
// root is disturbed. $TORTURE is how long that goes on (2h), or the number of rounds; $TORTURE_SEED is the first round's
// seed, and each round says its own.
func TestTorture(t *testing.T) {
	needBuild(t)
	rounds := tortureRounds
	if testing.Short() {
		rounds = 1
	}
	seed, more := tortureLength(t, rounds)
	base := tortureBase(t)
	for n := 0; more(n); n++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { newTorture(t, base, seed).round() })
		seed++
	}
}

// quietLog is for registries of tests.
var quietLog = log.New(io.Discard, "", 0)

// tortureBase is a directory with the base image as an OCI layout, and the secret of the builds.
func tortureBase(t *testing.T) string {
	t.Helper()
	s := newSite(t)
	s.base()
	dir := t.TempDir()
	s.write("Dockerfile", "FROM base\n")
	s.write("secret", "secret")
	s.ok("build", "-q", "-o", "type=oci,tar=false,dest="+filepath.Join(dir, "base"), ".")
	if err := os.Rename(filepath.Join(s.dir, "secret"), filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// torture is a round: one root, one project and its edits.
type torture struct {
	*generator
	t    *testing.T
	seed uint64
	base string
	site *site // the warm root
	// slots are directories of contexts, each with the project that it holds: builds that run at the same time have one each.
	slots    []string
	held     []*project
	versions []*project // what was built so far
	host     string     // of a registry
	did      []string   // what happened, for the report
	refused  int        // builds that failed, warm and cold
}

func newTorture(t *testing.T, base string, seed uint64) *torture {
	r := &torture{generator: newGenerator(seed), t: t, seed: seed, base: base}
	server := httptest.NewServer(gcr.New(gcr.Logger(quietLog)))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	for range 2 {
		r.slots = append(r.slots, t.TempDir())
	}
	r.held = make([]*project, len(r.slots))
	r.site = newSite(t)
	return r
}

// args are the arguments of a build of a context.
func (r *torture) args(p *project, slot int, more ...string) []string {
	args := []string{
		"build", "--progress=plain", "--network=none", "--build-context=base=oci-layout://" + filepath.Join(r.base, "base"),
		"--secret=id=s,src=" + filepath.Join(r.base, "secret"), "--build-arg=A=" + p.arg,
	}
	return append(append(args, more...), r.slots[slot])
}

// put writes a project into a slot.
func (r *torture) put(p *project, slot int) {
	p.put(r.t, r.slots[slot], r.held[slot])
	r.held[slot] = p
}

// outcome is what a build came to.
type outcome struct {
	code              int
	err               string
	flat, layers, run []string          // the tree as a tar and as layers; the configuration
	steps             map[string]string // see result.steps
}

// build is a build under way.
type build struct {
	*proc
	tar, oci string
}

func (r *torture) start(s *site, p *project, slot int, more ...string) *build {
	r.t.Helper()
	dir := r.t.TempDir()
	b := &build{tar: filepath.Join(dir, "tar"), oci: filepath.Join(dir, "oci")}
	b.proc = s.start(r.args(p, slot, append(more, "-o", "type=tar,dest="+b.tar, "-o", "type=oci,dest="+b.oci)...)...)
	return b
}

func (r *torture) outcome(b *build) outcome {
	r.t.Helper()
	res := b.result()
	out := outcome{code: res.code, err: res.err, steps: res.steps()}
	if res.code != 0 {
		for _, crash := range []string{"the engine ended", "panic:", "goroutine "} {
			if strings.Contains(res.err, crash) {
				r.t.Fatalf("TORTURE=1 TORTURE_SEED=%d: the engine crashes:\n%s\n%s", r.seed, res.err, strings.Join(r.did, "\n"))
			}
		}
		return out
	}
	flat := tree{}
	out.flat = r.read(b.tar, func(f io.Reader) ([]string, error) { err := flat.apply(f); return flat.lines(), err })
	out.layers = r.read(b.oci, func(f io.Reader) ([]string, error) {
		tr, config, err := readOCI(f)
		if err != nil {
			return nil, err
		}
		out.run = configLines(config)
		return tr.lines(), nil
	})
	return out
}

func (r *torture) read(name string, read func(io.Reader) ([]string, error)) []string {
	r.t.Helper()
	f, err := os.Open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer os.Remove(name)
	defer f.Close()
	lines, err := read(f)
	if err != nil {
		r.t.Fatalf("seed %d: %s: %v", r.seed, name, err)
	}
	return lines
}

// configLines describes a configuration: how a container runs, and the instructions.
func configLines(c *image.Config) []string {
	run, _ := json.Marshal(c.Config)
	out := []string{string(run)}
	for n, h := range c.History {
		out = append(out, fmt.Sprintf("%d %s empty=%v %s", n, h.CreatedBy, h.EmptyLayer, h.Comment))
	}
	return out
}

// compare says how two outcomes differ, "" if they do not.
func compare(warm, cold outcome) string {
	if warm.code != cold.code {
		return fmt.Sprintf("warm ends with code %d, cold with %d\nwarm: %s\ncold: %s", warm.code, cold.code, warm.err, cold.err)
	}
	return differences("tar", warm.flat, cold.flat) + differences("layers", warm.layers, cold.layers) + differences("config", warm.run, cold.run)
}

// cold builds what a slot holds in an empty root.
func (r *torture) cold(slot int) outcome {
	r.t.Helper()
	s, end := r.fresh()
	defer end()
	return r.outcome(r.start(s, r.held[slot], slot))
}

// fresh makes a root in which each command has an engine of its own.
func (r *torture) fresh() (*site, func()) {
	r.t.Helper()
	s := newSite(r.t)
	s.env = append(s.env, "STRATA_DAEMON=off")
	return s, func() {
		if err := os.RemoveAll(s.root); err != nil {
			r.t.Error(err)
		}
	}
}

// round builds a project and its edits. Each is built in the warm root after something has happened there, and compared.
func (r *torture) round() {
	p := r.project()
	for n := range tortureEdits {
		if n > 0 {
			p = r.edit(r.versions[len(r.versions)-1])
			if r.one(4) { // back to what was built before
				p = pick(r.generator, r.versions...)
			}
		}
		flags := r.disturb(p)
		if len(flags) > 0 && r.one(2) { // what a cache knows must not be taken for what differs in this alone
			p = p.clone()
			r.reorder(p)
		}
		r.did = append(r.did, fmt.Sprintf("build of version %d %v", len(r.versions), flags))
		r.versions = append(r.versions, p)
		builds := []*build{r.build(p, 0, flags)}
		if r.one(3) { // an edit of it at the same time
			q := r.edit(p)
			r.did = append(r.did, fmt.Sprintf("at the same time a build of version %d", len(r.versions)))
			r.versions = append(r.versions, q)
			builds = append(builds, r.build(q, 1, nil))
		}
		for slot, b := range builds {
			warm := r.outcome(b)
			if warm.code != 0 {
				r.refused++
			}
			if diff := compare(warm, r.cold(slot)); diff != "" {
				r.report(diff, r.held[slot])
			}
			if slot == 0 {
				r.checkNoCache(flags, warm.steps)
			}
		}
	}
	r.site.healthy()
	r.t.Logf("%d versions compared, of which %d cannot be built", len(r.versions), r.refused)
}

// checkNoCache checks that a build took nothing from the cache that its flags tell it to run.
func (r *torture) checkNoCache(flags []string, steps map[string]string) {
	for _, f := range flags {
		stage, ok := strings.CutPrefix(f, "--no-cache")
		if !ok {
			continue
		}
		stage = "[" + strings.TrimPrefix(stage, "-filter=") // all of them, or one
		for name, state := range steps {
			at, does, _ := strings.Cut(name, "] ")
			verb, _, _ := strings.Cut(does, " ")
			if state == "CACHED" && strings.HasPrefix(at, stage) && slices.Contains([]string{"RUN", "COPY", "ADD", "WORKDIR"}, verb) {
				r.t.Errorf("TORTURE=1 TORTURE_SEED=%d: %s: %q is from the cache\n%s", r.seed, f, name, strings.Join(r.did, "\n"))
			}
		}
	}
}

func (r *torture) build(p *project, slot int, flags []string) *build {
	r.put(p, slot)
	return r.start(r.site, p, slot, flags...)
}

// disturb does something to the warm root before a project is built there, and returns flags for the build.
func (r *torture) disturb(p *project) (flags []string) {
	s := r.site
	note := func(text string) { r.did = append(r.did, text) }
	switch what := r.IntN(14); what {
	case 0, 1: // the engine, or its client, ends in the middle of a build
		q := r.edit(p)
		r.put(q, 1)
		b := r.start(s, q, 1)
		lines := r.IntN(60)
		s.wait("progress", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			select {
			case <-b.done:
				return true
			default:
				return strings.Count(b.outs[1].String(), "\n") > lines
			}
		})
		if what == 0 {
			s.killEngine()
		} else {
			b.kill(syscall.SIGINT)
		}
		b.result()
		note([]string{"the engine was killed", "the client was interrupted"}[what] + " in the middle of a build of:\n" + q.String())
	case 2, 3, 4:
		args := pick(r.generator, []string{"prune"}, []string{"prune", "-a"}, []string{"prune", "--keep-bytes", "3m"}, []string{"image", "prune"})
		s.ok(args...)
		note(strings.Join(args, " "))
	case 5:
		s.ok("daemon", "stop")
		note("daemon stop")
	case 6:
		return []string{"--no-cache"}
	case 7:
		return []string{"--no-cache-filter=" + pick(r.generator, "s0", "s1")}
	case 8, 9, 10:
		return r.elsewhere()
	case 11:
		s.killEngine()
		note("the engine was killed")
	}
	return nil
}

// elsewhere has the last version exported as a cache, and a root without anything take the place of the warm one.
func (r *torture) elsewhere() []string {
	if len(r.versions) == 0 {
		return nil
	}
	last := r.versions[len(r.versions)-1]
	ref := fmt.Sprintf("%s/cache:%d", r.host, len(r.did))
	local := filepath.Join(r.t.TempDir(), "cache")
	to, from := []string{"--cache-to=type=local,dest=" + local + ",mode=" + pick(r.generator, "min", "max")}, "type=local,src="+local
	switch r.IntN(3) {
	case 0:
		to, from = []string{"--cache-to=type=registry,ref=" + ref + ",mode=" + pick(r.generator, "min", "max")}, ref
	case 1:
		to, from = []string{"--cache-to=type=inline", "--push", "--tag=" + ref}, ref
	}
	r.put(last, 1)
	if b := r.start(r.site, last, 1, to...); b.result().code != 0 {
		return nil // a project that cannot be built; a warm build that fails alone is found elsewhere
	}
	r.site.ok("daemon", "stop")
	r.site = newSite(r.t)
	r.did = append(r.did, fmt.Sprintf("a new root; the cache is from version %d by %v", len(r.versions)-1, to))
	return []string{"--cache-from=" + from}
}
