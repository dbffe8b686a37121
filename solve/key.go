package solve

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/strictjson"
)

// Preimage is everything that a cache key depends on. Its canonical JSON is kept with the result, so that a later miss
// can be explained.
type Preimage struct {
	Tenant   string          `json:"tenant,omitempty"`
	Kind     string          `json:"kind"`
	Op       json.RawMessage `json:"op,omitempty"`
	Platform graph.Platform  `json:"platform,omitzero"`
	Pin      string          `json:"pin,omitempty"`
	Inputs   []Input         `json:"inputs,omitempty"`
}

// Input is the token of one input: a key and an output's index, or the digest of the files that are used.
type Input struct {
	Key     graph.Digest `json:"key,omitempty"`
	Out     int          `json:"out,omitempty"`
	Content graph.Digest `json:"content,omitempty"`
	Name    string       `json:"-"` // of the input's vertex, for people
}

// Key returns the cache key.
func (p *Preimage) Key() graph.Digest { return digest.FromBytes(graph.Canonical(p)) }

// Explain says in one line why a step with the preimage now has another key than one with the preimage before.
func Explain(before, now *Preimage) string {
	var why []string
	if string(before.Op) != string(now.Op) {
		why = append(why, explainOp(before.Op, now.Op))
	}
	if before.Pin != now.Pin {
		why = append(why, fmt.Sprintf("the source moved from %s to %s", short(before.Pin), short(now.Pin)))
	}
	if before.Platform.OS != now.Platform.OS || before.Platform.Architecture != now.Platform.Architecture {
		why = append(why, "the platform changed")
	}
	if len(before.Inputs) != len(now.Inputs) {
		why = append(why, "it has other inputs")
	} else {
		why = append(why, explainInputs(before.Inputs, now.Inputs, len(why) > 0)...)
	}
	return strings.Join(why, "; ")
}

// explainInputs names the inputs that differ. That those are others on which it builds is said only if nothing else is.
func explainInputs(before, now []Input, known bool) (why []string) {
	var below []string
	for i, in := range now {
		old := before[i]
		switch {
		case in.Content != old.Content:
			why = append(why, fmt.Sprintf("files that it uses from %s changed", name(in.Name)))
		case in.Key != old.Key || in.Out != old.Out:
			below = append(below, name(in.Name))
		}
	}
	if len(why) > 0 || known || len(below) == 0 {
		return why
	}
	return []string{event.Follows + strings.Join(below, " and ") + ", which changed"}
}

func name(s string) string {
	if s == "" {
		return "an input"
	}
	return s
}

func short(pin string) string {
	if pin == "" {
		return "nothing"
	}
	if d, err := digest.Parse(pin); err == nil {
		return d.Encoded()[:12]
	}
	return pin
}

// explainOp names the fields of the op that differ.
func explainOp(before, now json.RawMessage) string {
	var a, b map[string]json.RawMessage
	if strictjson.Unmarshal(before, &a) != nil || strictjson.Unmarshal(now, &b) != nil {
		return "its definition changed"
	}
	var fields []string
	for k := range b {
		if string(a[k]) != string(b[k]) {
			fields = append(fields, k)
		}
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			fields = append(fields, k)
		}
	}
	if len(fields) == 0 {
		return "its definition changed"
	}
	slices.Sort(fields)
	return "its " + strings.Join(fields, ", ") + " changed"
}
