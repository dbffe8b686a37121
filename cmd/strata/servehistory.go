package main

import (
	"time"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
)

// historyConfig says which builds the daemon remembers.
type historyConfig struct {
	MaxAge     any    `toml:"maxAge"` // seconds, or a duration such as "48h"
	MaxEntries *int64 `toml:"maxEntries"`
}

// options makes the server's options. Without a section they are its own; maxEntries = 0 turns the history off.
func (c *historyConfig) options() (buildkit.HistoryOptions, error) {
	var out buildkit.HistoryOptions
	if c == nil {
		return out, nil
	}
	if c.MaxEntries != nil {
		if *c.MaxEntries < 0 {
			return out, diag.Errorf(diag.Invalid, "history.maxEntries is %d: it must not be negative", *c.MaxEntries)
		}
		out.Entries, out.Disabled = int(*c.MaxEntries), *c.MaxEntries == 0
	}
	age, err := tomlDuration(c.MaxAge)
	if err != nil {
		return out, diag.Errorf(diag.Invalid, "history.maxAge: %w", err)
	}
	out.Age = max(age, time.Nanosecond) // the zero value means something else
	return out, nil
}

// tomlDuration reads a duration as buildkitd.toml has it: a number of seconds, or "1h30m".
func tomlDuration(v any) (time.Duration, error) {
	switch x := v.(type) {
	case nil:
		return 0, nil
	case int64:
		return time.Duration(x) * time.Second, nil
	case string:
		if d, err := time.ParseDuration(x); err == nil {
			return d, nil
		}
	}
	return 0, diag.Errorf(diag.Invalid, "%v must be a number of seconds or a duration such as 48h", v)
}
