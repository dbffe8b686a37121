package image

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/strata-build/strata/strictjson"
)

// synthesized is the comment of a history row that stands for a layer no instruction accounts for.
const synthesized = "strata: layer without an instruction"

// MatchHistory makes the number of rows that are not empty equal to the number of layers. The first base layers belong
// to an image that was there before. Surplus rows lose their layer from the bottom, where histories are least reliable.
func MatchHistory(rows []History, layers, base int) []History {
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
	missing := make([]History, layers-n)
	for i := range missing {
		missing[i].Comment = synthesized
	}
	// A base image without any history leaves exactly its own layers without a row.
	if len(missing) == base && n != base {
		return append(missing, rows...)
	}
	return append(rows, missing...)
}

// Encode writes the configuration as JSON. Its members are sorted, as BuildKit's exporters have them, so that equal images
// have equal digests; those of the run configuration are in a fixed order, then come the others of the document that it was
// read from, sorted.
func (c *Config) Encode() ([]byte, error) {
	b, err := c.encode()
	if err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := strictjson.Unmarshal(b, &members); err != nil {
		return nil, err
	}
	return json.Marshal(members)
}

func (c *Config) encode() ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil || len(c.Extra) == 0 {
		return b, err
	}
	var extra map[string]json.RawMessage
	if err := strictjson.Unmarshal(c.Extra, &extra); err != nil {
		return nil, err
	}
	var inner map[string]json.RawMessage
	if raw, ok := extra["config"]; ok {
		if err := strictjson.Unmarshal(raw, &inner); err != nil {
			return nil, err
		}
	}
	run, err := json.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	b = bytes.Replace(b, append([]byte(`"config":`), run...), append([]byte(`"config":`), addUnknown(run, inner, reflect.TypeFor[RunConfig]())...), 1)
	return addUnknown(b, extra, reflect.TypeFor[Config]()), nil
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
