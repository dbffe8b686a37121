package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
)

// gcConfig says what a worker collects by itself.
type gcConfig struct {
	GC          *bool      `toml:"gc"`
	KeepStorage diskSpace  `toml:"gckeepstorage"`
	Reserved    diskSpace  `toml:"reservedSpace"`
	MaxUsed     diskSpace  `toml:"maxUsedSpace"`
	MinFree     diskSpace  `toml:"minFreeSpace"`
	Policy      []gcPolicy `toml:"gcpolicy"`
}

// gcFlags are those of buildkitd.
func gcFlags(fs *pflag.FlagSet, c *gcConfig) {
	fs.BoolFunc("oci-worker-gc", "Collect what builds no longer need (default true)", func(s string) error {
		on, err := strconv.ParseBool(s)
		c.GC = &on
		return err
	})
	fs.Lookup("oci-worker-gc").Hidden = true
	spec := "Space that stays, space to leave free and space to use, in MB: RESERVED[,FREE[,MAXIMUM]]"
	fs.Func("oci-worker-gc-keepstorage", spec, func(s string) error {
		for i, part := range strings.Split(s, ",") {
			if i > 2 {
				return invalid("it must be RESERVED[,FREE[,MAXIMUM]] in MB, such as 10000,20000,50000")
			}
			to := []*diskSpace{&c.Reserved, &c.MinFree, &c.MaxUsed}[i]
			if strings.HasSuffix(part, "%") {
				if err := to.UnmarshalText([]byte(part)); err != nil {
					return err
				}
				continue
			}
			mb, err := strconv.ParseInt(part, 10, 64)
			if err != nil || mb < 0 || mb > math.MaxInt64/1_000_000 {
				return invalid("it must be RESERVED[,FREE[,MAXIMUM]] in MB, such as 10000,20000,50000")
			}
			*to = diskSpace{buildkit.Space{Bytes: mb * 1_000_000}}
		}
		return nil
	})
	fs.Lookup("oci-worker-gc-keepstorage").Hidden = true
}

// under fills in what the flags do not say.
func (c *gcConfig) under(file *gcConfig) {
	none := diskSpace{}
	if c.Reserved == none && c.MinFree == none && c.MaxUsed == none {
		c.Reserved, c.MinFree, c.MaxUsed = file.Reserved, file.MinFree, file.MaxUsed
	}
	if c.GC == nil {
		c.GC = file.GC
	}
	c.KeepStorage, c.Policy = file.KeepStorage, file.Policy
}

// gcPolicy is one rule.
type gcPolicy struct {
	All          bool      `toml:"all"`
	Filters      []string  `toml:"filters"`
	KeepDuration any       `toml:"keepDuration"` // seconds, or a duration such as "48h"
	KeepBytes    diskSpace `toml:"keepBytes"`    // the old name of reservedSpace
	Reserved     diskSpace `toml:"reservedSpace"`
	MaxUsed      diskSpace `toml:"maxUsedSpace"`
	MinFree      diskSpace `toml:"minFreeSpace"`
}

// diskSpace is a number of bytes, a size such as "512MB", or a share of the disk such as "10%".
type diskSpace struct{ buildkit.Space }

// UnmarshalText reads a TOML integer or string.
func (d *diskSpace) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), `"`)
	if s == "" {
		return nil
	}
	if p, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseInt(p, 10, 64)
		if err != nil || n < 0 || n > 100 {
			return diag.Errorf(diag.Invalid, "invalid disk space %s: a share is between 0%% and 100%%", s)
		}
		d.Percent = n
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return diag.Errorf(diag.Invalid, "invalid disk space %s: it must be a number of bytes, a size such as 512MB, or a share such as 10%%", s)
	}
	d.Bytes = n
	return nil
}

// Sizes of BuildKit's rules for what is made again most easily, and how long that and the rest stay.
const (
	easyBytes = 512_000_000
	easyAge   = 48 * time.Hour
	oldAge    = 60 * 24 * time.Hour
)

// rules are the rules of collection, and the size that the store itself keeps: 0 = its own choice, negative = none.
func (c *gcConfig) rules() (rules []buildkit.GCRule, capacity int64, err error) {
	if c.GC != nil && !*c.GC {
		return nil, -1, nil
	}
	none := buildkit.Space{}
	if c.Reserved.Space == none && c.MaxUsed.Space == none && c.MinFree.Space == none {
		c.Reserved = c.KeepStorage
	}
	for i, p := range c.Policy {
		r := buildkit.GCRule{All: p.All, Filters: p.Filters, Reserved: p.Reserved.Space, MaxUsed: p.MaxUsed.Space, MinFree: p.MinFree.Space}
		if r.Reserved == none {
			r.Reserved = p.KeepBytes.Space
		}
		if r.KeepDuration, err = tomlDuration(p.KeepDuration); err != nil {
			return nil, 0, diag.Errorf(diag.Invalid, "gcpolicy %d: keepDuration: %w", i+1, err)
		}
		if err := r.Check(); err != nil {
			return nil, 0, diag.Errorf(diag.Invalid, "gcpolicy %d: %w", i+1, err)
		}
		rules = append(rules, r)
	}
	if len(rules) == 0 {
		rest := buildkit.GCRule{Reserved: c.Reserved.Space, MaxUsed: c.MaxUsed.Space, MinFree: c.MinFree.Space}
		if rest.Reserved == none && rest.MaxUsed == none && rest.MinFree == none {
			return nil, 0, nil
		}
		easy := []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"}
		old, all := rest, rest
		old.KeepDuration, all.All = oldAge, true
		rules = []buildkit.GCRule{{Filters: easy, KeepDuration: easyAge, MaxUsed: buildkit.Space{Bytes: easyBytes}}, old, rest, all}
	}
	return rules, hardCap(rules), nil
}

// hardCap is a size that no rule lets the state exceed for good: the store keeps below it also during a build.
func hardCap(rules []buildkit.GCRule) int64 {
	most := int64(math.MaxInt64)
	for _, r := range rules {
		if len(r.Filters) == 0 && r.KeepDuration == 0 && r.MaxUsed.Bytes > 0 && r.Reserved.Percent == 0 {
			most = min(most, max(r.MaxUsed.Bytes, r.Reserved.Bytes))
		}
	}
	if most == math.MaxInt64 {
		return -1
	}
	return most
}

// tenantSpace is the space of the disk for one tenant, in bytes: 0 = the engine's choice, -1 = no limit.
type tenantSpace int64

// UnmarshalText reads a number of bytes, a size such as "20GB", or "none".
func (t *tenantSpace) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), `"`)
	if s == "none" {
		*t = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 {
		return diag.Errorf(diag.Invalid, "invalid space %q for a tenant: it must be a number of bytes, a size such as 20GB, or none", s)
	}
	*t = tenantSpace(n)
	return nil
}
