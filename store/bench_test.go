package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/strata-build/strata/graph"
)

func BenchmarkNoOpBuild(b *testing.B) {
	for _, depth := range []int{1, 400} {
		b.Run(fmt.Sprintf("400 results, stacks of up to %d", depth), func(b *testing.B) {
			root := b.TempDir()
			s, err := Open(root, Options{Log: quiet, MaxBytes: -1})
			if err != nil {
				b.Fatal(err)
			}
			var stack []LayerID
			for i := range 400 {
				d, err := s.NewLayer(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				stack = append(stack, d.ID)
				err = s.Update(b.Context(), func(bt *Batch) error {
					bt.Layer(d, LayerInfo{Size: 1})
					bt.Result(key("%d", i), Result{Outputs: [][]LayerID{stack[max(0, len(stack)-depth):]}, Label: "RUN something"})
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			keys := make([]graph.Digest, 400)
			for i := range keys {
				keys[i] = key("%d", i)
			}
			// The best of all: the machine may be busy.
			openClose, lookups := time.Hour, time.Hour
			for b.Loop() {
				t0 := time.Now()
				s, err := Open(root, Options{Log: quiet, MaxBytes: -1})
				if err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				for _, k := range keys {
					if _, err := s.Result(k); err != nil {
						b.Fatal(err)
					}
				}
				t2 := time.Now()
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				lookups = min(lookups, t2.Sub(t1))
				openClose = min(openClose, t1.Sub(t0)+time.Since(t2))
			}
			b.ReportMetric(float64(lookups.Microseconds()), "best-lookup-us")
			b.ReportMetric(float64(openClose.Microseconds()), "best-openclose-us")
		})
	}
}

func BenchmarkStep(b *testing.B) {
	s, err := Open(b.TempDir(), Options{Log: quiet})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	i := 0
	newLayer, update := time.Hour, time.Hour // the best of all: the machine may be busy
	for b.Loop() {
		t0 := time.Now()
		d, err := s.NewLayer(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		i++
		err = s.Update(b.Context(), func(bt *Batch) error {
			bt.Layer(d, LayerInfo{Size: 1})
			bt.Result(key("%d", i), Result{Outputs: [][]LayerID{{d.ID}}, Label: "RUN something"})
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		newLayer, update = min(newLayer, t1.Sub(t0)), min(update, time.Since(t1))
	}
	b.ReportMetric(float64(newLayer.Nanoseconds())/1000, "best-newlayer-us")
	b.ReportMetric(float64(update.Nanoseconds())/1000, "best-update-us")
}
