package export

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
)

// finish returns the configuration of an image with these layers: the diff_ids, one history row that is not empty for
// each layer, and times for everything. An epoch bounds the times of the image and of the rows; those of the base image's rows,
// which nothing of this build made, stay.
func finish(c *image.Config, layers []Layer, im *Image, epoch *time.Time) *image.Config {
	extra := c.Extra
	c = c.Clone()
	c.Extra = extra
	c.RootFS = image.RootFS{Type: "layers", DiffIDs: make([]graph.Digest, len(layers))}
	for i, l := range layers {
		c.RootFS.DiffIDs[i] = l.DiffID
	}
	c.History = image.MatchHistory(c.History, len(layers), im.BaseLayers)
	fillTimes(c.History, layers)
	if epoch != nil {
		t := epoch.UTC()
		for i := sameRows(c.History, im.BaseHistory); i < len(c.History); i++ {
			if r := &c.History[i]; r.Created == nil || r.Created.After(t) {
				r.Created = &t
			}
		}
		if len(c.History) == 0 || c.Created != nil && c.Created.After(t) {
			c.Created = &t
		}
	}
	if n := len(c.History); c.Created == nil && n > 0 {
		c.Created = c.History[n-1].Created
	}
	return c
}

// sameRows returns how many rows two histories begin with in common.
func sameRows(a, b []image.History) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		sameTime := x.Created == nil && y.Created == nil || x.Created != nil && y.Created != nil && x.Created.Equal(*y.Created)
		if x.Created, y.Created = nil, nil; !sameTime || x != y {
			return i
		}
	}
	return min(len(a), len(b))
}

// fillTimes gives rows without a time that of their layer, and rows without a layer that of the row before (or, at the
// very bottom, of the first row that has one), so that an unchanged image keeps its digest.
func fillTimes(rows []image.History, layers []Layer) {
	next := 0
	for i := range rows {
		if rows[i].EmptyLayer {
			continue
		}
		if l := layers[next]; rows[i].Created == nil && !l.Created.IsZero() {
			t := l.Created.UTC()
			rows[i].Created = &t
		}
		next++
	}
	var last *time.Time
	if i := slices.IndexFunc(rows, func(r image.History) bool { return r.Created != nil }); i >= 0 {
		last = rows[i].Created
	}
	for i := range rows {
		if rows[i].Created == nil {
			rows[i].Created = last
		}
		last = rows[i].Created
	}
}

// inlineCache is the field of a configuration that holds the records of a cache, as BuildKit names it.
const inlineCache = "moby.buildkit.cache.v0"

// addCache puts the records of the image's cache, if it shall have one, into its configuration.
func (im *Image) addCache(ctx context.Context, c *image.Config, layers []Layer) error {
	if im.Cache == nil {
		return nil
	}
	ids, diffs := make([]store.LayerID, len(layers)), make([]graph.Digest, len(layers))
	for i, l := range layers {
		ids[i], diffs[i] = l.ID, l.DiffID
	}
	records, err := im.Cache(ctx, ids, diffs)
	if err != nil || records == nil {
		return err
	}
	members := map[string]json.RawMessage{}
	if len(c.Extra) > 0 {
		if err := strictjson.Unmarshal(c.Extra, &members); err != nil {
			return err
		}
	}
	if members[inlineCache], err = json.Marshal(records); err != nil {
		return err
	}
	c.Extra, err = json.Marshal(members)
	return err
}
