package pack

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/relayer"
)

// system is an image with n packages of Alpine's form, of files of about 4 KiB, in two layers.
func system(t *testing.T, w *Workspace, n int, version string) *Image {
	t.Helper()
	files := map[string]string{"etc/hostname": "h", "etc/ld.so.cache": "cache of " + version}
	var db strings.Builder
	for i := range n {
		name := fmt.Sprintf("p%03d", i)
		v := "1"
		if i == n/2 {
			v = version
		}
		fmt.Fprintf(&db, "P:%s\nV:%s\no:%s\nF:usr/lib/%s\nR:a\nR:b\n\n", name, v, name, name)
		files["usr/lib/"+name+"/a"] = strings.Repeat(name+" "+v+"\n", 500+i)
		files["usr/lib/"+name+"/b"] = name
	}
	files["lib/apk/db/installed"] = db.String()
	return Assemble(nil, []*Layer{dirLayer(t, w, "root", files), dirLayer(t, w, "more", map[string]string{"etc/hostname": "g"})}, Change{Cmd: []string{"sh"}})
}

// A new version of one package sends its layer and the top one.
func TestRelayerSendsWhatChanged(t *testing.T) {
	s := newServer(t)
	w := workspace(t, Options{})
	im := system(t, w, 60, "1")
	first, err := w.Relayer(t.Context(), im, relayer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(shows(t, w, first), shows(t, w, im)) {
		t.Error("it shows something else")
	}
	write(t, w, first, Target{Push: true, Names: []string{s.host + "/app:1"}})
	if up := s.uploaded(); len(up) != 62 { // 60 packages, the top layer, the configuration
		t.Errorf("%d blobs were sent at first", len(up))
	}

	w = workspace(t, Options{}) // another day
	before := open(t, w, s.host+"/app:1")
	plan, err := before.Plan()
	if err != nil || len(plan) != 60 {
		t.Fatalf("the plan has %d bins: %v", len(plan), err)
	}
	next, err := w.Relayer(t.Context(), system(t, w, 60, "2"), relayer.Options{Previous: plan})
	if err != nil {
		t.Fatal(err)
	}
	r := write(t, w, next, Target{Push: true, Names: []string{s.host + "/app:2"}, Reuse: []*Image{before}})
	var sent []string
	for _, l := range r.Layers {
		if l.Sent {
			sent = append(sent, l.Name)
		}
	}
	if up := s.uploaded(); fmt.Sprint(sent) != "[apk:p030 top]" || len(up) != 3 {
		t.Errorf("sent are %v, in %d uploads", sent, len(up))
	}
	compressed := 0
	for _, l := range next.Layers {
		compressed += len(l.packed)
	}
	if compressed != 2 {
		t.Errorf("%d layers were compressed again", compressed)
	}
	// An image that did not change sends nothing.
	again, err := w.Relayer(t.Context(), system(t, w, 60, "2"), relayer.Options{Previous: plan})
	if err != nil {
		t.Fatal(err)
	}
	if a := write(t, w, again, Target{Push: true, Names: []string{s.host + "/app:3"}, Reuse: []*Image{before}}); a.Digest != r.Digest || len(s.uploaded()) != 0 {
		t.Error("the same image is not the same the second time")
	}
}

// From a compressed image to any form: the same layers.
func TestRelayerForms(t *testing.T) {
	w := workspace(t, Options{})
	im := system(t, w, 10, "1")
	dir := t.TempDir()
	var want []string
	for i, c := range []layer.Type{layer.Uncompressed, layer.Gzip, layer.Zstd} {
		p := filepath.Join(dir, fmt.Sprint(i))
		write(t, w, im, Target{Format: OCIArchive, Path: p, Compression: &layer.Compression{Type: c}})
		v := workspace(t, Options{})
		cut, err := v.Relayer(t.Context(), open(t, v, p), relayer.Options{MaxLayers: 6})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []Format{OCI, OCIArchive, DockerArchive} {
			write(t, v, cut, Target{Format: f, Path: filepath.Join(dir, fmt.Sprint(i, f))})
		}
		if want == nil {
			want = diffs(cut)
		}
		if !slices.Equal(diffs(cut), want) || len(want) > 6 {
			t.Errorf("%s: %v, want %v", c, diffs(cut), want)
		}
	}
}

// large writes an image of size bytes in an archive, uncompressed, in files of 256 KiB.
func large(t testing.TB, dir string, size int64) string {
	t.Helper()
	var entries []*layer.Entry
	for i := range size / (256 << 10) {
		entries = append(entries, &layer.Entry{
			Path: fmt.Sprintf("opt/app/node_modules/m%05d/data", i), Type: layer.File, Mode: 0o644, Size: 256 << 10, ModTime: epoch,
			Open: func() (io.ReadCloser, error) {
				return io.NopCloser(io.LimitReader(rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}), 256<<10)), nil
			},
		}, &layer.Entry{
			Path: fmt.Sprintf("opt/app/node_modules/m%05d/package.json", i), Type: layer.File, Mode: 0o644, ModTime: epoch,
			Size: int64(len(fmt.Sprintf(`{"name":"m%05d","version":"1"}`, i))),
			Open: func() (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(fmt.Sprintf(`{"name":"m%05d","version":"1"}`, i))), nil
			},
		})
	}
	w := New(Options{Temp: dir})
	defer w.Close()
	p := filepath.Join(dir, "large.tar")
	im := Assemble(nil, []*Layer{NewLayer("large", entries, layer.TarOptions{})}, Change{})
	if _, err := w.Write(t.Context(), []*Image{im}, Target{Format: OCIArchive, Path: p, Compression: &layer.Compression{}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func relayerLarge(t testing.TB, in, out string) {
	t.Helper()
	w := New(Options{})
	defer w.Close()
	im, err := w.Image(t.Context(), in, thisMachine())
	if err != nil {
		t.Fatal(err)
	}
	cut, err := w.Relayer(t.Context(), im, relayer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(t.Context(), []*Image{cut}, Target{Format: OCI, Path: out, Compression: &layer.Compression{}}); err != nil {
		t.Fatal(err)
	}
}

// readHashWrite is what the time of relayering is compared with.
func readHashWrite(t testing.TB, in, out string) {
	t.Helper()
	r, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, sha256.New())}, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
}

// Memory does not grow with the image: live heap stays far below what is relayered.
func TestRelayerMemory(t *testing.T) {
	size := int64(64 << 20)
	if os.Getenv("STRATA_LONG") != "" {
		size = 1 << 30
	}
	dir := t.TempDir()
	p := large(t, dir, size)
	runtime.GC()
	peak := make(chan uint64)
	stop := make(chan struct{})
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		most := uint64(0)
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64()+sample[1].Value.Uint64())
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	relayerLarge(t, p, filepath.Join(dir, "out"))
	close(stop)
	if n := <-peak; n > 200<<20 {
		t.Errorf("relayering %d MiB took %d MiB of memory", size>>20, n>>20)
	} else {
		t.Logf("relayering %d MiB took %d MiB of memory", size>>20, n>>20)
	}
}

// BenchmarkRelayer against BenchmarkReadHashWrite: the bound is 1.5 times the time.
func BenchmarkRelayer(b *testing.B)       { benchmark(b, relayerLarge) }
func BenchmarkReadHashWrite(b *testing.B) { benchmark(b, readHashWrite) }

func benchmark(b *testing.B, f func(t testing.TB, in, out string)) {
	dir := b.TempDir()
	size := int64(256 << 20)
	if os.Getenv("STRATA_LONG") != "" {
		size = 1 << 30
	}
	p := large(b, dir, size)
	b.SetBytes(size)
	for b.Loop() {
		out := filepath.Join(dir, "out")
		f(b, p, out)
		b.StopTimer()
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
