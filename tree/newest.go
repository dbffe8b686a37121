package tree

import (
	"context"
	"time"

	"github.com/strata-build/strata/graph"
)

// Newest returns the latest time of a file of the tree, zero if there is no file. Directories do not count: unpacking an
// archive changes their times.
func (f *Files) Newest(ctx context.Context) (time.Time, error) {
	matches, err := f.Pick(ctx, graph.Select{Path: "/"}, false)
	if err != nil {
		return time.Time{}, err
	}
	var newest int64
	var visit func(p *Pick)
	visit = func(p *Pick) {
		if !p.IsDir() {
			newest = max(newest, p.MTime)
		}
		for i := range p.Kids {
			visit(&p.Kids[i])
		}
	}
	for i := range matches {
		visit(&matches[i].Pick)
	}
	if newest == 0 {
		return time.Time{}, nil
	}
	return time.Unix(0, newest).UTC(), nil
}
