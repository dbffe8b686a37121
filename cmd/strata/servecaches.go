package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/pelletier/go-toml/v2"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
)

// cachesConfig is what the operator says of the caches elsewhere that clients name.
type cachesConfig struct {
	Trusted     []string `toml:"trusted"`
	Credentials []string `toml:"credentials"`
}

// cacheRules reads the section [caches] of the configuration, which need not exist. Other sections are not its business.
func cacheRules(path string) (engine.CacheRules, error) {
	var conf struct {
		Caches cachesConfig `toml:"caches"`
	}
	data, err := os.ReadFile(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return engine.CacheRules{}, nil
	}
	if err == nil {
		err = toml.Unmarshal(data, &conf)
	}
	if err != nil {
		return engine.CacheRules{}, diag.Errorf(diag.Invalid, "the configuration %s: %w", path, err)
	}
	rules := engine.CacheRules{Trusted: conf.Caches.Trusted, Credentials: conf.Caches.Credentials}
	if err := rules.Check(); err != nil {
		return rules, diag.Errorf(diag.Invalid, "%s: section caches: %w", path, err)
	}
	return rules, nil
}
