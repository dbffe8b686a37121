package tree

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// The shape of bench.md's W3: 50,000 files, 300 MB, 500 directories. STRATA_BENCH_FILES changes the number.
func benchContext(b *testing.B) string {
	n := 50_000
	if s := os.Getenv("STRATA_BENCH_FILES"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	dir := b.TempDir()
	rnd := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 12<<10)
	for i := range n {
		if i%100 == 0 {
			check(b, os.MkdirAll(filepath.Join(dir, "src", "d"+strconv.Itoa(i/1000), "e"+strconv.Itoa(i/100)), 0o755))
		}
		rnd.Read(buf)
		size := 200 + int(rnd.Uint64()%uint64(len(buf)-200))
		p := filepath.Join(dir, "src", "d"+strconv.Itoa(i/1000), "e"+strconv.Itoa(i/100), "file"+strconv.Itoa(i))
		check(b, os.WriteFile(p, buf[:size], 0o644))
	}
	time.Sleep(2 * racyWindow)
	return dir
}

// cpu is the processor time of this process so far: on a busy machine it says more than the clock.
func cpu() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// copyOnce is what a COPY of the whole context does, from the digest to the finished layer.
func copyOnce(b *testing.B, s *store.Store, dir string) *store.Draft {
	ctx := context.Background()
	start, used := time.Now(), cpu()
	l := NewLocal(NewIndexes(s.Root()).Get(dir), session.Dir{Path: dir}, &graph.Local{})
	defer l.Release()
	q := graph.Select{Path: "/src", Contents: true}
	_, err := l.Content(ctx, graph.Selector{Paths: []graph.Select{q}})
	check(b, err)
	b.ReportMetric(time.Since(start).Seconds(), "s-digest")
	b.ReportMetric(cpu()-used, "cpu-digest")
	d, err := s.NewLayer(ctx)
	check(b, err)
	scratch := NewStack(s, nil)
	u, err := NewUpper(scratch, d)
	check(b, err)
	defer u.Close()
	m, err := l.files.Pick(ctx, q, true)
	check(b, err)
	start, used = time.Now(), cpu()
	e := FindLineage(s, dir)
	defer e.Close()
	b.ReportMetric(time.Since(start).Seconds(), "s-lineage")
	check(b, u.MkdirAll("/app", Meta{Mode: 0o755}))
	check(b, u.Copy(ctx, l.files, &m[0], "app", CopyOptions{Earlier: e}))
	b.ReportMetric(time.Since(start).Seconds(), "s-copy")
	b.ReportMetric(cpu()-used, "cpu-copy")
	start = time.Now()
	info, err := u.Finish(context.Background())
	check(b, err)
	check(b, u.SaveLineage(s, dir))
	b.ReportMetric(time.Since(start).Seconds(), "s-save")
	check(b, s.Update(ctx, func(t *store.Batch) error { t.Layer(d, info); return nil }))
	return d
}

func BenchmarkW3Cold(b *testing.B) {
	dir := benchContext(b)
	for b.Loop() {
		b.StopTimer()
		s := newStore(b)
		b.StartTimer()
		copyOnce(b, s, dir)
	}
}

func BenchmarkW3Unchanged(b *testing.B) {
	dir := benchContext(b)
	s := newStore(b)
	digest := func() graph.Digest {
		l := NewLocal(NewIndexes(s.Root()).Get(dir), session.Dir{Path: dir}, &graph.Local{})
		defer l.Release()
		return digestOf(b, l, graph.Selector{Paths: []graph.Select{{Path: "/src", Contents: true}}})
	}
	want := digest()
	for b.Loop() {
		if digest() != want {
			b.Fatal("the digest changed")
		}
	}
}

func BenchmarkW3OneChanged(b *testing.B) {
	dir := benchContext(b)
	s := newStore(b)
	copyOnce(b, s, dir)
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		check(b, os.WriteFile(filepath.Join(dir, "src/d0/e1/file100"), []byte(strconv.Itoa(i)), 0o644))
		b.StartTimer()
		copyOnce(b, s, dir)
	}
}
