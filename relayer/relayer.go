package relayer

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/strictjson"
)

// Component is a part of a file system that changes as a whole.
type Component struct {
	Name   string // unique, the same in every version if possible: "deb:openssl", "npm:left-pad@1.3.0"
	Family string // Name without a version, if it has one: a new version takes the place of the old
	Paths  []string
	// Dirs are directories with all that is in them, as far as no component has a nearer one.
	Dirs []string
	// Homes are directories that the component installs into. What nobody claims in a home of one component only, such as
	// compiled Python files, is that component's too.
	Homes []string
	Needs []string   // names of components that it depends on, as far as known
	Clamp *time.Time // no file is newer than this
	Late  bool       // an application rather than what it stands on: near the top
	// Updates returns how often it changes in a year, as far as the file system tells; 0 or a nil function if it says nothing.
	Updates func() float64
}

// Generator finds components. Find may claim what others claim too: generators are asked in order, the first wins.
type Generator interface {
	Name() string
	Find(ctx context.Context, fs *layer.FS) ([]Component, error)
}

// Options say how a file system is cut. The zero value is usable.
type Options struct {
	Generators []Generator // nil: Generators()
	Algorithm  string      // one of Algorithms(); "": auto for Nix, whose packages change with those that they need, else origin
	MaxLayers  int         // the top one included; 0 = DefaultMaxLayers
	Previous   Plan        // of the image before, nil if there is none
	Epoch      *time.Time  // no file is newer than this
	Explain    bool        // fill Layer.Updates and Expected, which takes a look at changelogs
}

// DefaultMaxLayers leaves room for layers on top: Docker takes 125.
const DefaultMaxLayers = 100

// Layer is one layer of the result, bottom first.
type Layer struct {
	Name       string   // of its biggest component, and how many more there are
	Components []string // sorted; nil: the top layer
	Kind       string   // "", "new" or "top"
	Entries    []*layer.Entry
	Bytes      int64   // of files
	Updates    float64 // with Explain: of its components in a year, as far as known; 0 for the top layer
	Expected   float64 // with Explain: bytes of it to be sent for each image of a series, on average, if one is made every month
}

// Annotations of a layer's descriptor, which a Plan is read from.
const (
	ComponentsAnnotation = "dev.strata.relayer.components" // a JSON list of names
	KindAnnotation       = "dev.strata.relayer.kind"
)

// The kinds of bins.
const (
	kindPlain = ""
	kindNew   = "new"
	kindTop   = "top"
)

// Annotations returns what the next run needs to know of the layer.
func (l *Layer) Annotations() map[string]string {
	m := map[string]string{}
	if l.Kind != kindPlain {
		m[KindAnnotation] = l.Kind
	}
	if l.Kind != kindTop {
		raw, err := json.Marshal(l.Components)
		if err != nil {
			panic("relayer: names have no JSON: " + err.Error())
		}
		m[ComponentsAnnotation] = string(raw)
	}
	return m
}

// Plan says what was in which layer, bottom first, the top one left out.
type Plan []Bin

// Bin is the plan of one layer.
type Bin struct {
	Components []string
	New        bool // the one for components that came later
}

// ReadPlan reads the annotations of an image's layers. An image that was not cut here gives nil.
func ReadPlan(layers []map[string]string) (Plan, error) {
	var p Plan
	for i, m := range layers {
		text, ok := m[ComponentsAnnotation]
		if !ok {
			continue
		}
		b := Bin{New: m[KindAnnotation] == kindNew}
		if err := strictjson.Unmarshal([]byte(text), &b.Components); err != nil {
			return nil, diag.Errorf(diag.Invalid, "layer %d: annotation %s: %w", i+1, ComponentsAnnotation, err)
		}
		p = append(p, b)
	}
	return p, nil
}

// Split cuts a file system into layers. The same file system, options and plan give the same layers.
func Split(ctx context.Context, fs *layer.FS, opt Options) ([]Layer, error) {
	if opt.Generators == nil {
		opt.Generators = Generators()
	}
	if opt.MaxLayers == 0 {
		opt.MaxLayers = DefaultMaxLayers
	}
	if opt.MaxLayers < 1 {
		return nil, diag.Errorf(diag.Invalid, "an image needs one layer at least, not %d", opt.MaxLayers)
	}
	c, err := survey(ctx, fs, opt)
	if err != nil {
		return nil, err
	}
	bins, err := plan(c.comps, opt)
	if err != nil {
		return nil, err
	}
	layers := c.cut(bins, opt)
	return layers, check(fs, layers)
}

// bin is a layer to be.
type bin struct {
	comps []*component
	kind  string
}

// component is a Component with the files that it got.
type component struct {
	Component
	files int
	bytes int64      // of the tar that its files make
	newst time.Time  // newest file among the Paths
	clamp *time.Time // what counts
}

// cut makes the layers of the bins, and the top one. The census is in the order of a tar, and so are all parts of it.
func (c *census) cut(bins []bin, opt Options) []Layer {
	out := make([]Layer, len(bins)+1)
	at := map[*component]int{}
	for i, b := range bins {
		out[i].Kind = b.kind
		for _, x := range b.comps {
			at[x] = i
			out[i].Components = append(out[i].Components, x.Name)
		}
		slices.Sort(out[i].Components)
		out[i].Name = title(b.comps)
	}
	top := len(bins)
	out[top].Kind, out[top].Name = kindTop, "top"
	above := make([]string, len(out)) // the directory that the layer's parents were written for
	for _, f := range c.files {
		i := top
		if f.owner != nil {
			i = at[f.owner]
			addParents(&out[i], &above[i], f.entry.Path)
		}
		e := clamped(f, opt.Epoch)
		out[i].Entries = append(out[i].Entries, e)
		out[i].Bytes += e.Size
	}
	if opt.Explain {
		explain(bins, out)
	}
	return slices.DeleteFunc(out, func(l Layer) bool { return len(l.Entries) == 0 && l.Kind != kindTop })
}

func title(comps []*component) string {
	big := slices.MaxFunc(comps, func(a, b *component) int { return int(a.bytes - b.bytes) })
	if len(comps) == 1 {
		return big.Name
	}
	return fmt.Sprintf("%s and %d more", big.Name, len(comps)-1)
}

// addParents writes the directories above p that the layer has not yet: the same ones in every image.
func addParents(l *Layer, above *string, p string) {
	dir := p[:max(strings.LastIndexByte(p, '/'), 0)]
	if dir == *above {
		return
	}
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' || i == 0 {
			continue
		}
		if d := dir[:i]; d != *above && !strings.HasPrefix(*above, d+"/") {
			l.Entries = append(l.Entries, &layer.Entry{Path: d, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(0, 0)})
		}
	}
	*above = dir
}

func clamped(f *file, epoch *time.Time) *layer.Entry {
	limit := epoch
	if f.owner != nil && f.owner.clamp != nil && (limit == nil || f.owner.clamp.Before(*limit)) {
		limit = f.owner.clamp
	}
	if limit == nil || !f.entry.ModTime.After(*limit) {
		return f.entry
	}
	e := *f.entry
	e.ModTime = *limit
	return &e
}

// check compares the layers' file system with the one that they were made of: everything but times that were clamped.
func check(want *layer.FS, layers []Layer) error {
	got := layer.NewFS()
	for _, l := range layers {
		if err := got.Add(l.Entries); err != nil {
			return diag.Errorf(diag.Internal, "relayering: %w", err)
		}
	}
	next, stop := iter.Pull2(got.Entries())
	defer stop()
	for e, err := range want.Entries() {
		if err != nil {
			return err
		}
		if g, _, ok := next(); !ok || !same(e, g) {
			return diag.Errorf(diag.Internal, "relayering: %q would not be what it was", e.Path)
		}
	}
	if g, _, ok := next(); ok {
		return diag.Errorf(diag.Internal, "relayering: %q was not there before", g.Path)
	}
	return nil
}

func same(a, b *layer.Entry) bool {
	return a.Path == b.Path && a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size && a.Link == b.Link &&
		a.Major == b.Major && a.Minor == b.Minor && maps.Equal(a.Xattrs, b.Xattrs) && !b.ModTime.After(a.ModTime)
}
