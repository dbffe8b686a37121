package export

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// synthesized is the comment of a history row that stands for a layer no instruction accounts for.
const synthesized = "strata: layer without an instruction"

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
	c.History = matchHistory(c.History, len(layers), base)
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

// matchHistory makes the number of rows that are not empty equal to the number of layers. The first base layers belong
// to an image that was there before. Surplus rows lose their layer from the bottom, where histories are least reliable.
func matchHistory(rows []image.History, layers, base int) []image.History {
	n := 0
	for _, r := range rows {
		if !r.EmptyLayer {
			n++
		}
	}
	for i := 0; n > layers; i++ {
		if !rows[i].EmptyLayer {
			rows[i].EmptyLayer = true
			n--
		}
	}
	missing := make([]image.History, layers-n)
	for i := range missing {
		missing[i].Comment = synthesized
	}
	// A base image without any history leaves exactly its own layers without a row.
	if len(missing) == base && n != base {
		return append(missing, rows...)
	}
	return append(rows, missing...)
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

// encodeConfig writes a configuration: the fields that Strata knows in their fixed order, then the others of the document
// that it was read from, sorted.
func encodeConfig(c *image.Config) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil || len(c.Extra) == 0 {
		return b, err
	}
	var extra map[string]json.RawMessage
	if err := json.Unmarshal(c.Extra, &extra); err != nil {
		return nil, err
	}
	var inner map[string]json.RawMessage
	if raw, ok := extra["config"]; ok {
		if err := json.Unmarshal(raw, &inner); err != nil {
			return nil, err
		}
	}
	run, err := json.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	b = bytes.Replace(b, append([]byte(`"config":`), run...), append([]byte(`"config":`), addUnknown(run, inner, reflect.TypeFor[image.RunConfig]())...), 1)
	return addUnknown(b, extra, reflect.TypeFor[image.Config]()), nil
}

// addUnknown appends to a JSON object the members that its Go type has no field for.
func addUnknown(object []byte, members map[string]json.RawMessage, t reflect.Type) []byte {
	unknown := maps.Clone(members)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		maps.DeleteFunc(unknown, func(k string, v json.RawMessage) bool { return strings.EqualFold(k, name) || string(v) == "null" })
	}
	for _, k := range slices.Sorted(maps.Keys(unknown)) {
		key, _ := json.Marshal(k) // a string always has JSON
		var value bytes.Buffer
		if json.Compact(&value, unknown[k]) != nil {
			continue // cannot be: it was parsed before
		}
		object = object[:len(object)-1]
		if len(object) > 1 {
			object = append(object, ',')
		}
		object = append(append(append(append(object, key...), ':'), value.Bytes()...), '}')
	}
	return object
}
