package pack

import (
	"context"
	"path"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// Conflict says what happens where new entries meet what an image has at the same path.
type Conflict string

const (
	// Follow puts new files over old ones. Entries below a symlink to a directory go where it points.
	Follow Conflict = "follow"
	// Keep leaves what the image has and drops the new entry. Symlinks to directories are followed.
	Keep Conflict = "keep"
	// Refuse makes an error of every new entry that would change or follow what the image has.
	Refuse Conflict = "error"
	// Replace writes the entries as they are, without reading the image: a directory replaces a symlink.
	Replace Conflict = "replace"
)

// Conflicts lists the ways.
func Conflicts() []string {
	return []string{string(Follow), string(Keep), string(Refuse), string(Replace)}
}

// Onto resolves entries that are to go on top of an image against the file system that it shows. Directories that the image
// has stay as they are, with their mode and owner. A directory never replaces a file, nor a file a directory: that is an error,
// except with Keep and Replace.
func (w *Workspace) Onto(ctx context.Context, im *Image, entries []*layer.Entry, how Conflict) ([]*layer.Entry, error) {
	if how == Replace {
		return entries, nil
	}
	fs, err := w.stack(ctx, im.Layers, layer.NewFS())
	if err != nil {
		return nil, err
	}
	o := &onto{fs: fs, how: how, cleared: map[string]bool{}, dropped: map[string]bool{}, gone: map[string]*layer.Entry{}, moved: map[string]string{}}
	for _, e := range entries {
		if hides, below, ok := layer.Marker(e.Path); ok && hides != "" {
			o.cleared[hides] = !below
		}
	}
	var kept []*layer.Entry
	for _, e := range entries {
		next, err := o.entry(e)
		if err != nil {
			return nil, err
		}
		if next != nil {
			kept = append(kept, next)
		}
	}
	upper := layer.NewUpper(fs)
	if err := upper.Add(kept); err != nil {
		return nil, err
	}
	return layer.Collect(upper.Entries())
}

// onto is one run of Onto.
type onto struct {
	fs      *layer.FS
	how     Conflict
	cleared map[string]bool         // what markers among the entries remove: the path itself too, or only what is below
	dropped map[string]bool         // directories whose entries are dropped with them
	gone    map[string]*layer.Entry // dropped files, which hard links may stand for
	moved   map[string]string       // first names that took the place of dropped ones
}

// entry returns what becomes of an entry, nil for nothing.
func (o *onto) entry(e *layer.Entry) (*layer.Entry, error) {
	if _, _, ok := layer.Marker(e.Path); ok {
		return e, nil
	}
	free := o.cleared[e.Path]
	for d := path.Dir(e.Path); ; d = path.Dir(d) {
		if o.dropped[d] {
			return o.drop(e), nil
		}
		if _, ok := o.cleared[d]; ok {
			free = true
		}
		if d == "." {
			break
		}
	}
	if e.Type == layer.HardLink {
		if to, ok := o.moved[e.Link]; ok {
			link := *e
			link.Link = to
			e = &link
		} else if first := o.gone[e.Link]; first != nil {
			o.moved[e.Link] = e.Path
			file := *first
			file.Path = e.Path
			e = &file
		}
	}
	if free {
		return e, nil
	}
	if e.Type == layer.Dir {
		return o.dir(e)
	}
	old, ok := o.fs.Lookup(e.Path)
	switch {
	case !ok:
		return e, nil
	case o.how == Keep:
		return o.drop(e), nil
	case old.Type == layer.Dir:
		return nil, conflict(e.Path, "the image has a directory there, not a "+kindOf(e))
	case o.how == Refuse:
		if same, err := sameEntry(old, e, o.dropped); err != nil || same {
			return nil, err
		}
		return nil, conflict(e.Path, "the image has another "+kindOf(old)+" there")
	}
	return e, nil
}

// dir is entry for directories: one that the image has needs no entry.
func (o *onto) dir(e *layer.Entry) (*layer.Entry, error) {
	real, err := o.fs.Resolve(e.Path)
	if err != nil {
		return nil, err
	}
	if real == "." {
		return nil, nil
	}
	if here, ok := o.fs.Lookup(e.Path); ok && here.Type == layer.Symlink && o.how == Refuse {
		return nil, conflict(e.Path, "the image has a symlink to "+here.Link+" there")
	}
	old, ok := o.fs.Lookup(real)
	switch {
	case !ok:
		moved := *e
		moved.Path = real
		return &moved, nil
	case old.Type == layer.Dir:
		return nil, nil
	case o.how == Keep:
		o.dropped[e.Path] = true
		return nil, nil
	}
	return nil, conflict(e.Path, "the image has a "+kindOf(old)+" there, not a directory")
}

func (o *onto) drop(e *layer.Entry) *layer.Entry {
	if e.Type == layer.File {
		o.gone[e.Path] = e
	}
	if e.Type == layer.Dir {
		o.dropped[e.Path] = true
	}
	return nil
}

func kindOf(e *layer.Entry) string {
	switch e.Type {
	case layer.Dir:
		return "directory"
	case layer.Symlink:
		return "symlink"
	case layer.Char, layer.Block:
		return "device"
	case layer.Fifo:
		return "FIFO"
	}
	return "file"
}

func conflict(at, what string) error {
	return diag.Errorf(diag.Invalid, "/%s: %s", at, what).
		WithHint("--conflict=keep leaves what the image has, --conflict=replace overwrites it")
}

// LayerOnto is Onto for a layer that NewLayer made. Layers of tars and of images stay as they are.
func (w *Workspace) LayerOnto(ctx context.Context, im *Image, l *Layer, how Conflict) (*Layer, error) {
	if !l.virtual || how == Replace {
		return l, nil
	}
	entries, err := w.Onto(ctx, im, l.entries, how)
	if err != nil {
		return nil, err
	}
	return NewLayer(l.Name, entries, l.opt), nil
}
