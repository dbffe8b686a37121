package lint

import (
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
)

// Config says which rules are wanted and whether a finding is an error.
type Config struct {
	Skip            []string
	SkipAll         bool
	Experimental    []string
	ExperimentalAll bool
	Error           bool
}

// ParseConfig reads "skip=A,B;error=true;experimental=all", in the form of `# check=` and BUILDKIT_DOCKERFILE_CHECK.
func ParseConfig(s string) (Config, error) {
	var c Config
	s = strings.TrimSpace(s)
	if s == "" {
		return c, nil
	}
	for _, part := range strings.Split(s, ";") {
		key, value, ok := strings.Cut(part, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok {
			return c, diag.Errorf(diag.Invalid, "invalid check option %q", part).WithHint("write it as check=skip=RULE,RULE;error=true")
		}
		switch key {
		case "skip":
			c.SkipAll, c.Skip = value == "all", names(value)
		case "experimental":
			c.ExperimentalAll, c.Experimental = value == "all", names(value)
		case "error":
			b, err := strconv.ParseBool(value)
			if err != nil {
				return c, diag.Errorf(diag.Invalid, "invalid value of check option error: %q is not true or false", value)
			}
			c.Error = b
		default:
			err := diag.Errorf(diag.Invalid, "invalid check option %q", key)
			if m := diag.Suggest(key, []string{"skip", "experimental", "error"}); m != "" {
				err = err.WithHint("did you mean %s?", m)
			}
			return c, err
		}
	}
	return c, nil
}

func names(s string) []string {
	if s == "all" {
		return nil
	}
	out := strings.Split(s, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

func (c Config) merge(o Config) Config {
	c.SkipAll = c.SkipAll || o.SkipAll
	c.ExperimentalAll = c.ExperimentalAll || o.ExperimentalAll
	c.Skip = slices.Concat(c.Skip, o.Skip)
	c.Experimental = slices.Concat(c.Experimental, o.Experimental)
	return c
}

func (c Config) wants(r *Rule) bool {
	if r.Experimental {
		return c.ExperimentalAll || slices.Contains(c.Experimental, r.Name)
	}
	return !c.SkipAll && !slices.Contains(c.Skip, r.Name)
}
