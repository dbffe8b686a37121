package graph

import "time"

// Squash merges the layers of its first input that lie above those of its second, which may be scratch, into one. It is
// keyed by the layers themselves: the ordered diff_ids of both.
type Squash struct{}

func (*Squash) Kind() string       { return "squash" }
func (*Squash) Outputs() int       { return 1 }
func (*Squash) Uses(int) *Selector { return &Selector{Layers: true} }

// LayerMode says what becomes of the base's layers.
type LayerMode string

const (
	LayersReplace LayerMode = "replace"
	LayersAppend  LayerMode = "append"
)

// Layers seals an image whose layers a build has made itself, in a directory (OUTPUT in a Dockerfile). Its inputs are the
// directory, the base, and, for a generator, the root file system that is to be divided into layers; its outputs the image's
// tree and a tree with the file image.json, an image.Sealed.
type Layers struct {
	Dir       string            `json:"dir"` // where the steps saw the directory
	Mode      LayerMode         `json:"mode"`
	Max       int               `json:"max"` // layers
	Generator string            `json:"generator,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	Epoch     *time.Time        `json:"epoch,omitempty"` // no file of a layer made of a directory is newer
	Previous  *Previous         `json:"-"`
}

// Previous says where layers that need not be made again are found. What it finds changes how fast a build is, not what it
// makes, so it is part of no key.
type Previous struct {
	Ref  string // an image; "" = the image that the build is about to name anew, or else what the step made last time
	Name string // tells steps of one project apart
	Base string // the reference of the base image; "" = none
}

func (*Layers) Kind() string       { return "layers" }
func (*Layers) Outputs() int       { return 2 }
func (*Layers) Uses(int) *Selector { return nil }

// Below returns the trees that an output is stacked on, bottom first: its own layers come above theirs. There are none for
// sources and for what begins with an empty tree.
func Below(e Edge) []Edge {
	if e.V == nil {
		return nil
	}
	at := func(i int) []Edge {
		if i < 0 || i >= len(e.V.In) || e.V.In[i].IsScratch() {
			return nil
		}
		return []Edge{e.V.In[i]}
	}
	switch o := e.V.Op.(type) {
	case *Exec:
		for _, m := range o.Mounts {
			if m.Output == e.Out {
				return at(m.Input)
			}
		}
	case *File:
		for i := len(o.Actions) - 1; i >= 0; i-- {
			if o.Actions[i].Out != e.Out {
				continue
			}
			in := o.Actions[i].In
			for in >= len(e.V.In) && in-len(e.V.In) < i {
				in = o.Actions[in-len(e.V.In)].In
			}
			return at(in)
		}
	case *Merge:
		return e.V.In
	case *Squash:
		return at(1)
	case *Layers:
		if e.Out == 0 && o.Mode == LayersAppend {
			return at(1)
		}
	}
	return nil
}
