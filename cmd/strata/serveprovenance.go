package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/strictjson"
)

// builderFacts reads what provenance tells of this builder: the members of the JSON objects in a directory's *.json files, as
// buildkitd does. "" is its default directory, which need not exist.
func builderFacts(dir string) (map[string]any, error) {
	if dir == "" {
		dir = "/etc/buildkit/provenance.d"
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "provenanceEnvDir %s: %w", dir, err)
	}
	out := map[string]any{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "provenanceEnvDir: %w", err)
		}
		var facts map[string]any
		if err := strictjson.Unmarshal(data, &facts); err != nil {
			return nil, diag.Errorf(diag.Invalid, "provenanceEnvDir: %s is no JSON object: %w", name, err)
		}
		for k := range facts {
			switch k {
			case "buildConfig", "builderPlatform", "platform":
				return nil, diag.Errorf(diag.Invalid, "provenanceEnvDir: %s: key %q is builtin and not allowed to be modified in provenance config", name, k)
			}
		}
		maps.Copy(out, facts)
	}
	return out, nil
}
