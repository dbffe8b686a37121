package engine

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/relayer"
)

// generate divides a root file system by the packages in it: OUTPUT --generator=NAME[,algorithm=…][,setting=value]. What the
// earlier build's layers held is kept together.
func generate(ctx context.Context, r op.GeneratorRequest) ([]op.Generated, func() error, error) {
	opt := relayer.Options{MaxLayers: min(r.Max, relayer.DefaultMaxLayers), Epoch: r.Epoch}
	text := r.Name
	for _, k := range slices.Sorted(maps.Keys(r.Options)) {
		if k == "algorithm" {
			opt.Algorithm = r.Options[k]
			if !slices.Contains(relayer.Algorithms(), opt.Algorithm) {
				return nil, nil, diag.Errorf(diag.Invalid, "no such algorithm: %s: it must be one of %s", opt.Algorithm, strings.Join(relayer.Algorithms(), ", "))
			}
			continue
		}
		text += "," + k + "=" + r.Options[k]
	}
	var err error
	opt.Generators, err = relayer.ParseGenerator(text, func(path string) ([]byte, error) {
		return nil, diag.Errorf(diag.Unsupported, "%s: a generator of a build reads no files of this machine", path)
	})
	if err != nil {
		return nil, nil, err
	}
	var notes []map[string]string
	for _, k := range r.Known {
		if k.From == "previous" {
			notes = append(notes, k.Annotations)
		}
	}
	if opt.Previous, err = relayer.ReadPlan(notes); err != nil {
		opt.Previous = nil // annotations are anybody's: a plan that cannot be read is none
	}
	w, err := layer.NewWalker(r.Dir, false)
	if err != nil {
		return nil, nil, err
	}
	layers, err := split(ctx, w, opt)
	if err != nil {
		w.Close()
		return nil, nil, err
	}
	var out []op.Generated
	for _, l := range layers {
		out = append(out, op.Generated{Name: l.Name, Annotations: l.Annotations(), Write: func(ctx context.Context, to io.Writer) error {
			_, err := layer.WriteEntries(ctx, to, entries(l.Entries), layer.TarOptions{Epoch: opt.Epoch})
			return err
		}})
	}
	return out, w.Close, nil
}

func split(ctx context.Context, w *layer.Walker, opt relayer.Options) ([]relayer.Layer, error) {
	var all []*layer.Entry
	for e, err := range w.Entries() {
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	fs := layer.NewFS()
	if err := fs.Add(all); err != nil {
		return nil, err
	}
	return relayer.Split(ctx, fs, opt)
}

func entries(list []*layer.Entry) func(func(*layer.Entry, error) bool) {
	return func(yield func(*layer.Entry, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}
