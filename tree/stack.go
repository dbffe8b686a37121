package tree

import (
	"context"
	"slices"
	"sync"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// Stack is a tree made of layers of the store. It holds them until it is released.
type Stack struct {
	s      *store.Store
	layers []store.LayerID // committed, bottom first
	draft  *store.Draft    // the top layer, if it is not committed yet
	info   store.LayerInfo // of the draft
	hold   *store.Hold

	mu    sync.Mutex
	files *Files
	view  *View // the mount that all users share
	users int
}

var _ Tree = (*Stack)(nil)

// NewStack returns the tree of layers, bottom first. Without layers it is scratch, the empty tree.
func NewStack(s *store.Store, layers []store.LayerID) *Stack {
	t := &Stack{s: s, layers: slices.Clone(layers), hold: s.Hold()}
	t.hold.Layers(layers...)
	return t
}

// NewDraftStack returns a tree whose top layer is finished but not committed: see Pending.
func NewDraftStack(s *store.Store, base []store.LayerID, draft *store.Draft, info store.LayerInfo) *Stack {
	t := NewStack(s, base)
	t.draft, t.info = draft, info
	t.hold.Layers(draft.ID)
	return t
}

// Pending returns the layer that is still to be committed (Batch.Layer), nil if there is none.
func (t *Stack) Pending() (*store.Draft, store.LayerInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.draft, t.info
}

// Committed tells the stack that its pending layer is in the store now.
func (t *Stack) Committed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.draft != nil {
		t.layers = append(t.layers, t.draft.ID)
		t.draft = nil
	}
}

// Discard deletes the pending layer, if there is one, and releases the stack.
func (t *Stack) Discard() {
	d, _ := t.Pending()
	t.Release()
	if d != nil {
		d.Discard()
	}
}

// IDs returns all layers, bottom first, committed or not.
func (t *Stack) IDs() []store.LayerID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.draft != nil {
		return append(slices.Clone(t.layers), t.draft.ID)
	}
	return slices.Clone(t.layers)
}

// Layers is documented at Tree.
func (t *Stack) Layers() ([]store.LayerID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.layers), t.draft == nil
}

// dirs returns the directories of the layers, top first.
func (t *Stack) dirs() []string {
	ids := t.IDs()
	slices.Reverse(ids)
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = t.s.LayerDir(id)
	}
	return out
}

// Files returns the picture of the tree. It needs no mount.
func (t *Stack) Files() (*Files, error) {
	dirs := t.dirs()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		t.files = newFiles(dirs, true)
	}
	return t.files, nil
}

// Content is documented at Tree.
func (t *Stack) Content(ctx context.Context, sel graph.Selector) (graph.Digest, error) {
	if sel.Layers {
		return t.layersDigest(ctx)
	}
	f, err := t.Files()
	if err != nil {
		return "", err
	}
	d, err := f.content(ctx, sel)
	if err == nil {
		err = t.s.Sound(t.IDs()...)
	}
	return d, err
}

func (t *Stack) overlay() overlay {
	return overlay{lower: supported(t.dirs()), temp: func() (string, func(), error) { return t.s.TempDir("mount-") }}
}

// Mount mounts the tree at target, an existing directory: read-only, or with what is written going into draft. The
// draft's directory must not be mounted elsewhere, nor written otherwise, until unmount is called.
func (t *Stack) Mount(ctx context.Context, target string, draft *store.Draft) (unmount func() error, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	o := t.overlay()
	if draft != nil {
		o.upper, o.work = draft.Dir, draft.Work
	}
	return o.mount(target)
}

// Open mounts the tree read-only in the store's directory of temporary files. All views of a stack share one mount.
func (t *Stack) Open(ctx context.Context) (*View, error) {
	o := t.overlay()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.view == nil {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		dir, cleanup, err := t.s.TempDir("view-")
		if err != nil {
			return nil, err
		}
		unmount, err := o.mount(dir)
		if err != nil {
			cleanup()
			return nil, err
		}
		t.view = &View{Dir: dir, close: func() error {
			err := unmount()
			if err == nil {
				cleanup()
			}
			return err
		}}
	}
	t.users++
	return &View{Dir: t.view.Dir, close: t.closeView}, nil
}

func (t *Stack) closeView() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users--; t.users > 0 {
		return nil
	}
	v := t.view
	t.view = nil
	return v.Close()
}

// Release is documented at Tree. Views that are open stay usable only if someone else holds the layers.
func (t *Stack) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files != nil {
		t.files.close()
	}
	t.hold.Release()
}
