package tree

import (
	"context"
	"sync"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// Tree is the result of a step.
type Tree interface {
	// Content returns the digest of what sel selects. A path that does not exist is a diag.NotFound error that suggests
	// the nearest name.
	Content(ctx context.Context, sel graph.Selector) (graph.Digest, error)
	// Open makes the tree readable as a directory until the view is closed.
	Open(ctx context.Context) (*View, error)
	// Layers returns the layers of the store that the tree is made of, bottom first. It is false for a tree that is not
	// in the store: a client's directory, or a stack whose top layer is not committed.
	Layers() ([]store.LayerID, bool)
	// Release ends the use of the tree: what it holds in the store may be collected.
	Release()
}

// View is a tree as a directory. It must only be read. What is in Dir was written by others: resolve paths within it.
type View struct {
	Dir string

	match func(rel string) (bool, error)
	close func() error
	once  sync.Once
	err   error
}

// Match reports whether the path (relative to Dir, slashes) is part of the tree: a client's directory holds more files
// than the tree has.
func (v *View) Match(rel string) (bool, error) {
	if v.match == nil {
		return true, nil
	}
	return v.match(rel)
}

// Close ends the view. It may be called more than once.
func (v *View) Close() error {
	v.once.Do(func() {
		if v.close != nil {
			v.err = v.close()
		}
	})
	return v.err
}
