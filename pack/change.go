package pack

import (
	"cmp"
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/relayer"
)

// Change says what is set in an image's configuration. Zero fields change nothing.
type Change struct {
	Platform   graph.Platform
	Created    *time.Time
	Author     string
	Env        []string // NAME=VALUE; the value replaces an older one
	Cmd        []string // an empty list removes it
	Entrypoint []string // an empty list removes it; resets Cmd unless that is set too, as in a Dockerfile
	User       string
	WorkingDir string
	Labels     map[string]string
	Ports      []string // "80/tcp"
	Volumes    []string
	StopSignal string
}

// Apply changes a configuration.
func (c Change) Apply(to *image.Config) {
	if c.Platform.OS != "" {
		to.OS, to.Architecture, to.Variant = c.Platform.OS, c.Platform.Architecture, c.Platform.Variant
	}
	if c.Created != nil {
		t := c.Created.UTC().Truncate(time.Second)
		to.Created = &t
	}
	to.Author = cmp.Or(c.Author, to.Author)
	r := &to.Config
	r.Env = image.MergeEnv(r.Env, c.Env)
	if c.Entrypoint != nil {
		r.Entrypoint, r.Cmd = unlessEmpty(c.Entrypoint), nil
	}
	if c.Cmd != nil {
		r.Cmd = unlessEmpty(c.Cmd)
	}
	r.User, r.WorkingDir, r.StopSignal = cmp.Or(c.User, r.User), cmp.Or(c.WorkingDir, r.WorkingDir), cmp.Or(c.StopSignal, r.StopSignal)
	if len(c.Labels) > 0 && r.Labels == nil {
		r.Labels = map[string]string{}
	}
	maps.Copy(r.Labels, c.Labels)
	for _, p := range c.Ports {
		if !strings.Contains(p, "/") {
			p += "/tcp"
		}
		r.ExposedPorts = put(r.ExposedPorts, p)
	}
	for _, v := range c.Volumes {
		r.Volumes = put(r.Volumes, v)
	}
}

// unlessEmpty returns nil for an empty list: a setting that is removed is no setting.
func unlessEmpty(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
}

func put(m map[string]struct{}, k string) map[string]struct{} {
	if m == nil {
		m = map[string]struct{}{}
	}
	m[k] = struct{}{}
	return m
}

// with returns the image with other layers, the upper new ones of which get a row in the history each.
func (im *Image) with(layers []*Layer, kept int) *Image {
	c := im.Config.Clone()
	c.Extra = im.Config.Extra
	c.RootFS.DiffIDs = nil
	for _, l := range layers[kept:] {
		row := l.History
		if row.CreatedBy == "" && row.Comment == "" {
			row.CreatedBy = "strata: layer" // the name of a directory of this machine is not part of the image
		}
		row.EmptyLayer = false
		c.History = append(c.History, row)
	}
	return &Image{Name: im.Name, Platform: im.Platform, Config: c, Layers: layers, Annotations: im.Annotations}
}

// Configured returns the image with a changed configuration. A change that changes nothing keeps the digest.
func (im *Image) Configured(c Change) *Image {
	before, _ := im.Config.Encode()
	next := im.Config.Clone()
	next.Extra = im.Config.Extra
	c.Apply(next)
	after, _ := next.Encode() // Clone has shown that there is JSON
	out := &Image{Name: im.Name, Platform: next.Platform(), Config: next, Layers: im.Layers, Annotations: im.Annotations}
	if string(before) == string(after) {
		out.manifest, out.rawConfig = im.manifest, im.rawConfig
	}
	return out
}

// Assemble makes an image of layers, bottom first, on a base; nil is none. Any order will do, the same layer may be there
// twice. Times of history rows are those of the image.
//
//	im := pack.Assemble(nil, []*pack.Layer{root, app}, pack.Change{Entrypoint: []string{"/app"}})
func Assemble(base *Image, layers []*Layer, c Change) *Image {
	if base == nil {
		p := c.Platform
		if p.OS == "" {
			p = thisMachine()
		}
		base = &Image{Platform: p, Config: &image.Config{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	}
	for _, l := range layers {
		if l.History.Created == nil {
			l.History.Created = c.Created
		}
	}
	im := base.with(append(slices.Clone(base.Layers), layers...), len(base.Layers))
	return im.Configured(c)
}

// Limit merges the uppermost layers into one, so that there are at most n. What they delete below stays deleted. If that
// merges anything, all layers are read.
func (w *Workspace) Limit(ctx context.Context, layers []*Layer, n int) ([]*Layer, error) {
	if n < 1 {
		return nil, diag.Errorf(diag.Invalid, "an image needs one layer at least, not %d", n)
	}
	if len(layers) <= n {
		return layers, nil
	}
	below, err := w.stack(ctx, layers[:n-1], layer.NewFS())
	if err != nil {
		return nil, err
	}
	fs := layer.NewFS()
	if n > 1 {
		fs = layer.NewUpper(below)
	}
	if fs, err = w.stack(ctx, layers[n-1:], fs); err != nil {
		return nil, err
	}
	entries, err := layer.Collect(fs.Entries())
	if err != nil {
		return nil, err
	}
	merged := NewLayer("merged layers", entries, layer.TarOptions{AllXattrs: true})
	merged.History.Created = layers[len(layers)-1].History.Created
	return append(slices.Clone(layers[:n-1]), merged), nil
}

// Missing leaves out the entries that the image shows exactly so already: of the same type, mode, owner, size, content,
// attributes and link target. Times do not count. Directories stay if something in them stays.
func (w *Workspace) Missing(ctx context.Context, im *Image, entries []*layer.Entry) ([]*layer.Entry, error) {
	fs, err := w.FS(ctx, im)
	if err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	drop := map[string]bool{}
	for _, e := range entries {
		old, ok := fs.Lookup(e.Path)
		same := false
		if ok {
			if same, err = sameEntry(old, e, drop); err != nil {
				return nil, err
			}
		}
		drop[e.Path] = same
		if !same {
			for d := e.Path; !kept[d]; {
				kept[d] = true
				i := strings.LastIndexByte(d, '/')
				if i < 0 {
					break
				}
				d = d[:i]
			}
			if e.Type == layer.HardLink { // its file must be there for it
				kept[e.Link] = true
			}
		}
	}
	var out []*layer.Entry
	for _, e := range entries {
		if kept[e.Path] {
			out = append(out, e)
		}
	}
	return out, nil
}

func sameEntry(old, e *layer.Entry, dropped map[string]bool) (bool, error) {
	if e.Type == layer.HardLink { // the first name was compared
		return old.Type == layer.File && dropped[e.Link] && old.Path == e.Link, nil
	}
	if old.Type != e.Type || old.UID != e.UID || old.GID != e.GID || !maps.Equal(old.Xattrs, e.Xattrs) {
		return false, nil
	}
	switch e.Type {
	case layer.Symlink:
		return old.Link == e.Link, nil
	case layer.Char, layer.Block:
		return old.Mode == e.Mode && old.Major == e.Major && old.Minor == e.Minor, nil
	case layer.File:
		if old.Mode != e.Mode || old.Size != e.Size {
			return false, nil
		}
		return layer.SameContent(old, e)
	}
	return old.Mode == e.Mode, nil
}

// Rebase moves an image from one base to another: its lowest layers must be those of from and become those of to. What the
// configuration has from the old base it has from the new one then.
func Rebase(im, from, to *Image) (*Image, error) {
	n := len(from.Layers)
	if len(im.Layers) < n || !slices.EqualFunc(im.Layers[:n], from.Layers, func(a, b *Layer) bool { return a.diffID == b.diffID }) {
		return nil, diag.Errorf(diag.Invalid, "%s is not based on %s: its lowest layers are others", im.Name, from.Name).
			WithHint("compare them with 'strata image layers'")
	}
	if im.Platform.OS != to.Platform.OS || im.Platform.Architecture != to.Platform.Architecture {
		return nil, diag.Errorf(diag.Invalid, "%s is for %s, %s for %s", im.Name, graph.FormatPlatform(im.Platform), to.Name, graph.FormatPlatform(to.Platform))
	}
	c := im.Config.Clone()
	c.Extra = im.Config.Extra
	c.History = append(slices.Clone(to.Config.History), upper(im.Config.History, n)...)
	c.RootFS.DiffIDs = nil
	moveConfig(&c.Config, &from.Config.Config, &to.Config.Config)
	return &Image{
		Name: im.Name, Platform: im.Platform, Config: c, Annotations: im.Annotations,
		Layers: append(slices.Clone(to.Layers), im.Layers[n:]...),
	}, nil
}

// upper returns the rows above the n lowest layers.
func upper(rows []image.History, n int) []image.History {
	for i, r := range rows {
		if n == 0 {
			return rows[i:]
		}
		if !r.EmptyLayer {
			n--
		}
	}
	return nil
}

func moveConfig(c, from, to *image.RunConfig) {
	var own []string
	for _, kv := range c.Env {
		if !slices.Contains(from.Env, kv) {
			own = append(own, kv)
		}
	}
	c.Env = image.MergeEnv(to.Env, own)
	if slices.Equal(c.Entrypoint, from.Entrypoint) {
		c.Entrypoint = to.Entrypoint
	}
	if slices.Equal(c.Cmd, from.Cmd) {
		c.Cmd = to.Cmd
	}
	for k, v := range from.Labels {
		if c.Labels[k] == v {
			delete(c.Labels, k)
		}
	}
	for k, v := range to.Labels {
		if _, ok := c.Labels[k]; !ok {
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[k] = v
		}
	}
	c.ExposedPorts = moveSet(c.ExposedPorts, from.ExposedPorts, to.ExposedPorts)
	c.Volumes = moveSet(c.Volumes, from.Volumes, to.Volumes)
	if slices.Equal(c.Shell, from.Shell) {
		c.Shell = to.Shell
	}
	if slices.Equal(c.OnBuild, from.OnBuild) {
		c.OnBuild = to.OnBuild
	}
	if reflect.DeepEqual(c.Healthcheck, from.Healthcheck) {
		c.Healthcheck = to.Healthcheck
	}
	for _, f := range []struct{ c, from, to *string }{{&c.User, &from.User, &to.User}, {&c.WorkingDir, &from.WorkingDir, &to.WorkingDir}, {&c.StopSignal, &from.StopSignal, &to.StopSignal}} {
		if *f.c == *f.from {
			*f.c = *f.to
		}
	}
}

// moveSet takes the elements of the old base from a set and adds those of the new base.
func moveSet(set, from, to map[string]struct{}) map[string]struct{} {
	var out map[string]struct{}
	for k := range set {
		if _, ok := from[k]; !ok {
			out = put(out, k)
		}
	}
	for k := range to {
		out = put(out, k)
	}
	return out
}

// Plan reads the plan that an image was relayered by; nil if it was not.
func (im *Image) Plan() (relayer.Plan, error) {
	var notes []map[string]string
	for _, l := range im.Layers {
		notes = append(notes, l.Annotations)
	}
	return relayer.ReadPlan(notes)
}

// Relayer cuts the image's file system into layers by its components. Nothing is written yet: the layers are lists of what
// is where in the old ones.
func (w *Workspace) Relayer(ctx context.Context, im *Image, opt relayer.Options) (*Image, error) {
	fs, err := w.stack(ctx, im.Layers, layer.NewFS())
	if err != nil {
		return nil, err
	}
	cut, err := relayer.Split(ctx, fs, opt)
	if err != nil {
		return nil, err
	}
	c := im.Config.Clone()
	c.Extra = im.Config.Extra
	c.RootFS.DiffIDs = nil
	c.History = slices.DeleteFunc(c.History, func(h image.History) bool { return !h.EmptyLayer })
	base := &Image{Name: im.Name, Platform: im.Platform, Config: c, Annotations: im.Annotations}
	var layers []*Layer
	for i := range cut {
		l := NewLayer(cut[i].Name, cut[i].Entries, layer.TarOptions{AllXattrs: true})
		l.Annotations, l.Cut = cut[i].Annotations(), &cut[i]
		l.History = image.History{CreatedBy: "strata image relayer: " + cut[i].Name, Created: im.Config.Created}
		layers = append(layers, l)
	}
	return base.with(layers, 0), nil
}
