package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/strata-build/strata/cache"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session"
)

// cacheKinds are the types of caches elsewhere.
var cacheKinds = []string{"registry", "local", "inline", "s3", "azblob", "gha"}

// cacheEnv are the attributes that the environment gives to caches which it does not name otherwise, as with buildx.
var cacheEnv = map[string]map[string]string{
	"s3":  {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY", "session_token": "AWS_SESSION_TOKEN"},
	"gha": {"token": "ACTIONS_RUNTIME_TOKEN", "url_v2": "ACTIONS_RESULTS_URL", "url": "ACTIONS_CACHE_URL"},
}

// parseCache reads "type=TYPE[,NAME=VALUE]", or the name of an image of a registry. Directories become absolute.
func parseCache(s string) (engine.CacheSpec, error) {
	if s != "" && !strings.Contains(s, "=") {
		return engine.CacheSpec{Type: "registry", Attrs: map[string]string{"ref": s}}, nil
	}
	a, err := attributes(s)
	if err != nil {
		first, rest, _ := strings.Cut(s, ",")
		if d, ok := errors.AsType[*diag.Error](err); ok && d.Hint == "" && !strings.Contains(first, "=") && rest != "" {
			err = d.WithHint("write type=registry,ref=%s,%s", first, rest)
		}
		return engine.CacheSpec{}, err
	}
	spec := engine.CacheSpec{Type: a["type"], Attrs: a}
	delete(a, "type")
	switch {
	case spec.Type == "":
		return spec, invalid("the type is missing").WithHint("write type=%s", strings.Join(cacheKinds, ", type="))
	case !slices.Contains(cacheKinds, spec.Type):
		return spec, suggest(invalid("unknown type %q: it must be one of %s", spec.Type, strings.Join(cacheKinds, ", ")), spec.Type, cacheKinds)
	}
	for attr, name := range cacheEnv[spec.Type] {
		if v := os.Getenv(name); v != "" && a[attr] == "" {
			a[attr] = v
		}
	}
	for _, k := range []string{"src", "dest"} {
		if spec.Type == "local" && a[k] != "" {
			if a[k], err = filepath.Abs(a[k]); err != nil {
				return spec, diag.Errorf(diag.Internal, "%s: %w", k, err)
			}
		}
	}
	return spec, nil
}

// setCaches lets the session give the directories that are caches. A cache that is not there yet is not imported.
func (b *buildFlags) setCaches(c *cli, dirs map[string]session.Dir, targets map[string]session.OutputTarget) {
	for _, s := range b.cacheTo {
		if outsideActions(c, s) {
			continue
		}
		if d := s.Attrs["dest"]; s.Type == "local" && d != "" {
			targets[cache.DirName(d)] = session.OutputTarget{Dir: d}
		}
		b.req.CacheTo = append(b.req.CacheTo, s)
	}
	for _, s := range b.cacheFrom {
		if outsideActions(c, s) {
			continue
		}
		if d := s.Attrs["src"]; s.Type == "local" && d != "" {
			if st, err := os.Stat(d); err != nil || !st.IsDir() {
				fmt.Fprintf(c.err, "warning: the cache %s is not there yet: the build goes on without\n", d)
				continue
			}
			dirs[cache.DirName(d)] = session.Dir{Path: d}
		}
		b.req.CacheFrom = append(b.req.CacheFrom, s)
	}
}

// outsideActions says, and warns, that there is no cache of GitHub Actions: a build that uses it there works elsewhere, too, as with
// buildx.
func outsideActions(c *cli, s engine.CacheSpec) bool {
	if s.Type != "gha" || s.Attrs["token"] != "" && s.Attrs["url"]+s.Attrs["url_v2"] != "" {
		return false
	}
	fmt.Fprintln(c.err, "warning: the cache of GitHub Actions is not used: there is no token or no url_v2")
	return true
}
