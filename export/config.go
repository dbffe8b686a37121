package export

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
)

// finish returns the configuration of an image with these layers: the diff_ids, one history row that is not empty for
// each layer, and times for everything. An epoch replaces the image's time and bounds those of the rows.
func finish(c *image.Config, layers []Layer, base int, epoch *time.Time) *image.Config {
	extra := c.Extra
	c = c.Clone()
	c.Extra = extra
	c.RootFS = image.RootFS{Type: "layers", DiffIDs: make([]graph.Digest, len(layers))}
	for i, l := range layers {
		c.RootFS.DiffIDs[i] = l.DiffID
	}
	c.History = image.MatchHistory(c.History, len(layers), base)
	fillTimes(c.History, layers)
	if n := len(c.History); c.Created == nil && n > 0 {
		c.Created = c.History[n-1].Created
	}
	if epoch != nil {
		t := epoch.UTC()
		c.Created = &t
		for i := range c.History {
			if r := &c.History[i]; r.Created == nil || r.Created.After(t) {
				r.Created = &t
			}
		}
	}
	return c
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
		if err := json.Unmarshal(c.Extra, &members); err != nil {
			return err
		}
	}
	if members[inlineCache], err = json.Marshal(records); err != nil {
		return err
	}
	c.Extra, err = json.Marshal(members)
	return err
}
