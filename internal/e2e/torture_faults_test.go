package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/strata-build/strata/internal/faultdisk"
)

// faultKinds are what happens to a build.
var faultKinds = []string{"kill", "cancel", "power cut", "write error", "full", "no inodes", "read-only", "registry"}

// TestTortureFaults builds, with the state on a disk of its own, while something goes wrong: the engine is killed, the client
// leaves, the power goes, the disk fails, is full or becomes read-only, the registry sends nonsense. Afterwards the engine starts
// without help and finds no damage that it cannot mend; each image that a build had acknowledged is there, with its files
// (after a power cut: if that was two seconds before); a build gives what it gives in an empty root; and nothing is left over.
// $TORTURE and $TORTURE_SEED are those of TestTorture. A plain go test makes one round of each kind on ext4, and some on xfs and
// btrfs.
func TestTortureFaults(t *testing.T) {
	needBuild(t)
	plain := os.Getenv("TORTURE") == ""
	base := tortureBase(t)
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			kinds := faultKinds
			switch {
			case plain && fs != "ext4":
				kinds = []string{"power cut", "write error"}
			case plain && testing.Short():
				kinds = []string{"kill", "power cut", "write error"}
			}
			seed, more := tortureLength(t, len(kinds))
			f := newFaults(t, base, fs, seed)
			for n := 0; more(n); n++ {
				f.round(kinds[n%len(kinds)])
				if t.Failed() {
					t.Fatalf("TORTURE=%d TORTURE_SEED=%d -run 'TestTortureFaults/%s': in round %d:\n%s", n+1, seed, fs, n, strings.Join(f.did, "\n"))
				}
			}
			t.Logf("seed %d: %v", seed, f.count)
		})
	}
}

// tortureLength returns the seed of a campaign, and whether its n-th round is to be made; rounds are those without $TORTURE.
func tortureLength(t *testing.T, rounds int) (seed uint64, more func(n int) bool) {
	t.Helper()
	seed = 1
	more = func(n int) bool { return n < rounds }
	if s := os.Getenv("TORTURE"); s != "" {
		seed = uint64(rand.Uint32())
		if d, err := time.ParseDuration(s); err == nil {
			until := time.Now().Add(d)
			more = func(int) bool { return time.Now().Before(until) }
		} else if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("TORTURE=%q is neither a duration nor a number", s)
		}
	}
	if s := os.Getenv("TORTURE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("TORTURE_SEED=%q is not a number", s)
		}
	}
	return seed, more
}

// faults is a campaign on one disk.
type faults struct {
	*torture
	fs    string
	disk  *faultdisk.Disk
	kept  []ackedImage // what builds have acknowledged
	next  int          // of images' names
	count map[string]int
	bad   *badRegistry
}

// ackedImage is an image that a build said it had made.
type ackedImage struct {
	name   string
	at     time.Time
	layers []string // diff_ids
	files  []string // see outcome.layers
}

// keptImages is how many images a campaign keeps at a time.
const keptImages = 4

func newFaults(t *testing.T, base, fs string, seed uint64) *faults {
	f := &faults{fs: fs, count: map[string]int{}, torture: newTorture(t, base, seed)}
	var options []string
	if fs == "ext4" {
		options = []string{"-N", "12000"}
	}
	f.disk = faultdisk.New(t, 320<<20, fs, options...)
	f.site = newSiteAt(t, filepath.Join(f.disk.Dir, "state"))
	f.site.env = append(f.site.env, "STRATA_GC_BYTES=100m")
	f.bad = newBadRegistry(t, f.Rand)
	return f
}

// round has one build fail, or not, and looks at what is there afterwards.
func (f *faults) round(kind string) {
	s := f.site
	f.count[kind]++
	p := f.project()
	if n := len(f.versions); n > 0 && !f.one(3) {
		p = f.edit(f.versions[n-1])
	}
	f.versions = append(f.versions, p)
	f.put(p, 0)
	name := fmt.Sprintf("img:%d", f.next)
	f.next++
	f.did = append(f.did, fmt.Sprintf("%s, in a build of %s", kind, name))
	more := []string{"-t", name}
	if kind == "registry" {
		f.bad.broken.Store(true)
		name = f.bad.host + "/" + name
		more = []string{"--push", "-t", name}
	}
	if kind == "full" || kind == "no inodes" {
		defer f.fill(kind)()
	}
	b := s.start(f.args(p, 0, more...)...)
	lines := f.IntN(40)
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
	cut, down := time.Time{}, false
	switch kind {
	case "kill":
		s.killEngine()
	case "cancel":
		b.kill(syscall.SIGINT)
	case "power cut":
		cut, down = time.Now(), true
		f.disk.Cut(f.Rand)
		s.killEngine()
	case "write error":
		cut = time.Now()
		f.disk.FailWritesAfter(f.IntN(300), 1+f.IntN(8))
	case "read-only":
		cut = time.Now()
		if err := f.disk.Remount("ro"); err != nil { // files are open for writing: the journal's failure does it
			f.disk.FailWritesAfter(f.IntN(20), 10_000)
		}
	}
	r := b.result()
	f.noCrash(r)
	if kind == "write error" || kind == "read-only" {
		// The file system may have ended itself, and what the engine believes is settled by its flush.
		s.run("daemon", "stop")
		s.killEngine()
		down = true
	}
	lost := false
	if down {
		f.disk.Unmount()
		lost = f.repair()
		f.disk.Mount()
	}
	if f.bad.broken.Swap(false) && r.code == 0 {
		s.ok("image", "pull", name) // what was pushed is whole
	}
	f.settle(name, p, r, cut, lost)
}

// noCrash fails on what no fault may cause.
func (f *faults) noCrash(r result) {
	f.t.Helper()
	for _, crash := range []string{"panic:", "goroutine ", "%!"} {
		if strings.Contains(r.err, crash) {
			f.t.Fatalf("the engine crashes:\n%s", r.err)
		}
	}
}

// repair does what a machine does when it mounts a file system that had errors. It reports whether the file system has lost
// what was durable.
func (f *faults) repair() (lost bool) { return f.fs == "ext4" && f.disk.Check() }

// fill takes all space, or all inodes, of the disk. The returned function gives them back.
func (f *faults) fill(kind string) func() {
	f.t.Helper()
	dir := filepath.Join(f.disk.Dir, "fill")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	var err error
	if kind == "no inodes" && f.fs == "ext4" {
		for n := 0; err == nil; n++ {
			err = os.WriteFile(filepath.Join(dir, strconv.Itoa(n)), nil, 0o644)
		}
	} else {
		file, cerr := os.Create(filepath.Join(dir, "fill"))
		if cerr != nil {
			f.t.Fatal(cerr)
		}
		for spare := 0; err == nil; spare++ {
			_, err = file.Write(make([]byte, 64<<10))
		}
		// Some is left, so that the build comes to different points.
		if fi, serr := file.Stat(); serr == nil {
			err = errors.Join(err, file.Truncate(max(0, fi.Size()-int64(f.IntN(8<<20)))))
		}
		file.Close()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		f.t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(dir); err != nil {
			f.t.Error(err)
		}
	}
}

// settle checks what is promised after a fault. cut is when what was not durable may have been lost; zero = it may not. After a loss
// of the file system itself, images may be gone.
func (f *faults) settle(name string, p *project, r result, cut time.Time, lost bool) {
	t, s := f.t, f.site
	if fill := filepath.Join(f.disk.Dir, "fill"); exists(fill) {
		if err := os.RemoveAll(fill); err != nil {
			t.Fatal(err)
		}
		f.disk.Sync() // btrfs gives space back with its next transaction
	}
	if r := s.run("check", "--full"); !strings.Contains(r.out, "no damage left") {
		if cut.IsZero() {
			t.Errorf("damage though the disk has lost nothing: %s%s", r.out, r.err)
		}
		f.did = append(f.did, r.out)
		s.ok("check", "--full", "--repair") // what the disk has lost, and was promised to nobody, or else the next lines find it
		s.healthy()
	}
	f.kept = slices.DeleteFunc(f.kept, func(im ackedImage) bool {
		return f.check(im, lost || !cut.IsZero() && cut.Sub(im.at) < 3*time.Second)
	})
	cold := f.cold(0)
	if r.code == 0 && cut.IsZero() { // acknowledged, and nothing may have been lost
		if cold.code != 0 {
			t.Errorf("a build succeeds that fails in an empty root: %s", cold.err)
			return
		}
		f.keep(name, cold)
	}
	warm := f.outcome(f.start(s, p, 0))
	if diff := compare(warm, cold); diff != "" {
		f.report(diff, f.held[0])
	}
	if warm.code == 0 && !f.has(name) {
		s.ok(f.args(p, 0, "-t", name)...)
		f.keep(name, cold)
	}
	for len(f.kept) > keptImages {
		s.ok("image", "rm", f.kept[0].name)
		f.kept = f.kept[1:]
	}
	if left := s.leftOfSteps(); len(left) > 0 {
		t.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (f *faults) has(name string) bool {
	return slices.ContainsFunc(f.kept, func(im ackedImage) bool { return im.name == name })
}

// keep notes that an image was acknowledged.
func (f *faults) keep(name string, cold outcome) {
	f.kept = append(f.kept, ackedImage{name: name, at: time.Now(), layers: f.site.layers(name), files: cold.layers})
}

// check looks at an acknowledged image. It returns whether the image is gone, which it may be only if it was young.
func (f *faults) check(im ackedImage, young bool) (gone bool) {
	if f.site.run("image", "inspect", im.name).code != 0 {
		if !young {
			f.t.Errorf("the image %s was acknowledged, and is gone", im.name)
		}
		return true
	}
	if got := f.site.layers(im.name); !slices.Equal(got, im.layers) {
		f.t.Errorf("the image %s has the layers %v, and had %v", im.name, got, im.layers)
	}
	saved := filepath.Join(f.t.TempDir(), "saved")
	f.site.ok("image", "save", "--format=oci", "-o", saved, im.name)
	got := f.read(saved, func(r io.Reader) ([]string, error) {
		tr, _, err := readOCI(r)
		if err != nil {
			return nil, err
		}
		return tr.lines(), nil
	})
	if diff := differences("files", got, im.files); diff != "" {
		f.t.Errorf("the image %s has other files than it was made with:\n%s", im.name, diff)
	}
	return false
}

// badRegistry is a registry that, while it is broken, cuts answers off, refuses requests and sends other bytes.
type badRegistry struct {
	broken atomic.Bool
	host   string
}

func newBadRegistry(t *testing.T, random *rand.Rand) *badRegistry {
	b := &badRegistry{}
	inner := gcr.New(gcr.Logger(quietLog))
	seed := random.Uint64()
	var n atomic.Uint64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := rand.New(rand.NewPCG(seed, n.Add(1)))
		if !b.broken.Load() || g.IntN(3) > 0 {
			inner.ServeHTTP(w, r)
			return
		}
		switch g.IntN(4) {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			panic(http.ErrAbortHandler) // the connection ends
		case 2:
			_, _ = io.CopyN(io.Discard, r.Body, int64(g.IntN(1<<16)))
			panic(http.ErrAbortHandler)
		default:
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			_, _ = w.Write([]byte(strings.Repeat("nonsense", g.IntN(100))))
		}
	}))
	t.Cleanup(server.Close)
	b.host = strings.TrimPrefix(server.URL, "http://")
	return b
}
