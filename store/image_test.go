package store

import (
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/graph"
)

func names(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	all, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, im := range all {
		out[im.Name] = true
	}
	return out
}

// The name goes from one image to the next. Only the image that has it is kept for it.
func TestOnlyNamedImagesStay(t *testing.T) {
	opt := slow()
	opt.MaxBytes, opt.overhead = 5000, func() int64 { return 0 }
	s := open(t, t.TempDir(), opt)
	if err := s.count(); err != nil {
		t.Fatal(err)
	}
	var ids []graph.Digest
	image := func(n int, name string, pulled bool) {
		t.Helper()
		layer := addLayer(t, s, key("%d", n), 1000)
		config, err := s.PutBlob(t.Context(), []byte(key("config %d", n)))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, config)
		im := Image{Updated: time.Now(), Pulled: pulled, Platforms: []PlatformImage{{Config: config, Layers: []LayerID{layer}}}}
		if name == "" {
			name = string(config)
		}
		update(t, s, func(b *Batch) { b.Image(name, im); b.DropResult(key("%d", n)) })
	}
	image(0, "app", false)
	image(1, "app", false) // 0 loses its name
	image(2, "", false)
	image(3, "base", true)
	if have := names(t, s); !have["app"] || !have[string(ids[0])] || !have[string(ids[2])] || !have["base"] || len(have) != 4 {
		t.Errorf("%v", have)
	}
	// Nothing that an image needs goes when only what is not needed may.
	f, err := s.GC(t.Context(), Policy{All: true, Unneeded: true})
	if err != nil || len(f.Items) != 0 {
		t.Errorf("%+v, %v", f, err)
	}
	for n := 4; n < 12; n++ {
		image(n, "", false)
		if _, err := s.tend(); err != nil {
			t.Fatal(err)
		}
	}
	have := names(t, s)
	if !have["app"] || have[string(ids[0])] || have[string(ids[2])] || have["base"] || !have[string(ids[11])] {
		t.Errorf("over its cap the store has %v", have)
	}
	if n := total(t, s); n > 5000 {
		t.Errorf("%d bytes", n)
	}
	// By age.
	s.usage.mu.Lock()
	s.usage.aged = time.Time{}
	s.usage.mu.Unlock()
	old, err := s.Image(string(ids[11]))
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(b *Batch) { old.Updated = time.Now().Add(-2 * danglingAge); b.Image(old.Name, old) })
	s.touchMu.Lock()
	s.touched = map[string]use{}
	s.touchMu.Unlock()
	s.dropOldImages()
	if have := names(t, s); have[string(ids[11])] || !have["app"] {
		t.Errorf("after %v there are %v", danglingAge, have)
	}
	f, err = s.GC(t.Context(), Policy{All: true, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	kept := ""
	for _, k := range f.Kept {
		kept += k.Why + "\n"
	}
	if !strings.Contains(kept, "needed by image app") {
		t.Errorf("what was kept and why: %q", kept)
	}
}
