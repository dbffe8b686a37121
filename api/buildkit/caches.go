package buildkit

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/strictjson"
)

// oldCaches turns the fields of earlier clients into today's.
func oldCaches(c *control.CacheOptions) {
	if c == nil {
		return
	}
	if ref := c.ExportRefDeprecated; ref != "" {
		attrs := map[string]string{"ref": ref}
		for k, v := range c.ExportAttrsDeprecated {
			attrs[k] = v
		}
		c.Exports = append(c.Exports, &control.CacheOptionsEntry{Type: "registry", Attrs: attrs})
	}
	for _, ref := range c.ImportRefsDeprecated {
		c.Imports = append(c.Imports, &control.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	c.ExportRefDeprecated, c.ExportAttrsDeprecated, c.ImportRefsDeprecated = "", nil, nil
}

// cacheExports checks what caches a client wants to have written. None may be named twice, but inline is the same.
func cacheExports(job *engine.Job, all []*control.CacheOptionsEntry) ([]*engine.CacheExport, error) {
	var specs []engine.CacheSpec
	seen := map[string]bool{}
	for _, c := range all {
		key, err := json.Marshal([]any{c.GetType(), c.GetAttrs()})
		if err != nil {
			return nil, err
		}
		id := string(key)
		if c.GetType() == "registry" && c.GetAttrs()["ref"] != "" {
			id = c.GetAttrs()["ref"]
		}
		if c.GetType() == "inline" {
			if slices.ContainsFunc(specs, func(s engine.CacheSpec) bool { return s.Type == "inline" }) {
				continue
			}
		}
		if seen[id] {
			return nil, diag.Errorf(diag.Invalid, "duplicate cache exports [%s]", c.GetType())
		}
		seen[id] = true
		specs = append(specs, engine.CacheSpec{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return job.CacheExports(specs)
}

// importCaches lets the build find results in caches. One that cannot be used is told, since a build is right without it; only one
// of a type that there is not is an error: a mistake in what the client wrote.
func (b *bridge) importCaches(specs ...engine.CacheSpec) error {
	for _, s := range specs {
		err := b.job.ImportCaches(s)
		if errors.Is(err, engine.ErrUnknownCache) {
			return err
		}
		if err != nil {
			b.journal.take(event.Event{Kind: event.Message, Time: time.Now(), Text: "a cache is not used: " + err.Error()})
		}
	}
	return nil
}

func controlSpecs(all []*control.CacheOptionsEntry) (out []engine.CacheSpec) {
	for _, c := range all {
		out = append(out, engine.CacheSpec{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return out
}

// gatewayCaches are the caches of a frontend's request.
func gatewayCaches(req *gateway.SolveRequest) (out []engine.CacheSpec) {
	for _, c := range req.CacheImports {
		out = append(out, engine.CacheSpec{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return out
}

// frontendCaches are the caches that a frontend's attributes name, in today's form and in that of the first days.
func frontendCaches(attrs map[string]string) ([]engine.CacheSpec, error) {
	var out []engine.CacheSpec
	if v := attrs["cache-imports"]; v != "" {
		var all []*control.CacheOptionsEntry
		if err := strictjson.Unmarshal([]byte(v), &all); err != nil {
			return nil, diag.Errorf(diag.Invalid, "failed to unmarshal cache-imports (%q): %w", v, err)
		}
		out = controlSpecs(all)
	}
	if v := attrs["cache-from"]; v != "" {
		for _, ref := range strings.Split(v, ",") {
			out = append(out, engine.CacheSpec{Type: "registry", Attrs: map[string]string{"ref": ref}})
		}
	}
	return out, nil
}
