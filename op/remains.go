package op

import (
	"sync"

	"github.com/strata-build/strata/tree"
)

// Remains is the failure of a step, with what the step has written until then: clients look into it, or run commands in it.
// Whoever gets it from a runner releases it; all who retain it release it once more.
type Remains struct {
	error
	// Trees are what was written, by the index of the mount or of the file action; what could not be written is not there.
	Trees map[int]*tree.Stack
	// Action is the index of the file action that failed.
	Action int

	mu    sync.Mutex
	users int
}

// remains makes a failure that one user holds.
func remains(err error, trees map[int]*tree.Stack) *Remains {
	return &Remains{error: err, Trees: trees, users: 1}
}

func (r *Remains) Unwrap() error { return r.error }

// Retain reports whether the trees are still there, and keeps them until another Release.
func (r *Remains) Retain() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users == 0 {
		return false
	}
	r.users++
	return true
}

// Release gives up the trees. The last one deletes them.
func (r *Remains) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users--; r.users == 0 {
		for _, t := range r.Trees {
			t.Discard()
		}
	}
}
