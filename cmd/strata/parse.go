package main

import (
	"encoding/csv"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// A flag's parser returns errors that say what is expected; the flag's name and the value are added by badFlag.

// invalid is an error in a flag's value.
func invalid(format string, args ...any) *diag.Error {
	return diag.Errorf(diag.Invalid, format, args...)
}

// field is one part of a comma-separated flag: a name, and a value if there was an "=".
type field struct {
	name, value string
	hasValue    bool
}

// fields splits a flag's value as a line of CSV, so that a part with a comma can be quoted: `"dest=a,b",type=tar`.
func fields(s string) ([]field, error) {
	r := csv.NewReader(strings.NewReader(s))
	r.LazyQuotes = false
	parts, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, invalid("the value is empty")
	}
	if err != nil {
		return nil, invalid("the quotes do not match").WithHint(`quote a whole part that has a comma: '"src=a,b",id=x'`)
	}
	var out []field
	for _, p := range parts {
		name, value, ok := strings.Cut(p, "=")
		out = append(out, field{strings.TrimSpace(name), value, ok})
	}
	return out, nil
}

// attributes reads fields into a map and refuses names that are not known; no known names means that all are.
func attributes(s string, known ...string) (map[string]string, error) {
	parts, err := fields(s)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, f := range parts {
		switch {
		case f.name == "" || !f.hasValue:
			return nil, invalid("%q is not NAME=VALUE", f.name)
		case len(known) > 0 && !slices.Contains(known, f.name):
			return nil, suggest(invalid("unknown attribute %q: it must be one of %s", f.name, strings.Join(known, ", ")), f.name, known)
		}
		if _, ok := out[f.name]; ok {
			return nil, invalid("%s is given twice", f.name)
		}
		out[f.name] = f.value
	}
	return out, nil
}

func suggest(err *diag.Error, word string, known []string) error {
	if near := diag.Suggest(word, known); near != "" {
		return err.WithHint("did you mean %s?", near)
	}
	return err
}

// parseSecret reads "id=NAME[,src=FILE|,env=VAR][,type=file|env]". As in Docker, a bare id is the variable of that name
// if it is set, else the file of that name.
func parseSecret(s string) (string, session.SecretSource, error) {
	var src session.SecretSource
	a, err := attributes(s, "id", "src", "source", "env", "type")
	if err != nil {
		if d, ok := errors.AsType[*diag.Error](err); ok && d.Hint == "" && !strings.Contains(s, "=") {
			err = d.WithHint("write --secret id=%s, or --secret id=NAME,src=FILE", s)
		}
		return "", src, err
	}
	file := a["src"]
	if file == "" {
		file = a["source"]
	}
	id := a["id"]
	if id == "" {
		return "", src, invalid("the id is missing").WithHint("write --secret id=NAME,src=FILE or --secret id=NAME,env=VARIABLE")
	}
	switch t := a["type"]; t {
	case "", "file", "env":
		if file != "" && a["env"] != "" {
			return "", src, invalid("src and env are both given").WithHint("a secret is a file or a variable")
		}
		if t == "env" && a["env"] == "" {
			// Docker takes src as the variable's name here.
			return id, session.SecretSource{Env: firstOf(file, id)}, nil
		}
		if t == "file" && file == "" {
			file = id
		}
	default:
		return "", src, suggest(invalid("type %q is neither file nor env", t), t, []string{"file", "env"})
	}
	if file == "" && a["env"] == "" {
		if _, ok := os.LookupEnv(id); !ok {
			file = id
		}
	}
	return id, session.SecretSource{File: file, Env: a["env"]}, nil
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// parseSSH reads "ID" or "ID=SOCKET|KEY[,KEY…]".
func parseSSH(s string) (id string, paths []string, err error) {
	id, list, ok := strings.Cut(s, "=")
	if id == "" {
		return "", nil, invalid("the id is missing").WithHint("write --ssh default, or --ssh ID=SOCKET or --ssh ID=KEYFILE")
	}
	if ok {
		for p := range strings.SplitSeq(list, ",") {
			if p == "" {
				return "", nil, invalid("a path is empty")
			}
			paths = append(paths, p)
		}
	}
	return id, paths, nil
}

// output is what one --output asks for.
type output struct {
	kind  string
	attrs map[string]string
	dest  string // path, "-" for stdout, or ""
}

// outputKinds are the types that --output takes.
var outputKinds = []string{"local", "tar", "oci", "docker", "image", "registry", "cacheonly"}

// parseOutput reads "type=TYPE[,dest=PATH][,NAME=VALUE…]", or a bare path: a directory, or "-" for a tar to stdout.
func parseOutput(s string) (output, error) {
	if s == "-" {
		return output{kind: "tar", attrs: map[string]string{}, dest: "-"}, nil
	}
	if s != "" && !strings.ContainsAny(s, "=,") {
		return output{kind: "local", attrs: map[string]string{}, dest: s}, nil
	}
	a, err := attributes(s)
	if err != nil {
		return output{}, err
	}
	o := output{kind: a["type"], dest: a["dest"], attrs: a}
	delete(a, "type")
	delete(a, "dest")
	if o.dest == "" && slices.Contains([]string{"local", "tar", "oci", "docker"}, o.kind) {
		for _, name := range slices.Sorted(maps.Keys(a)) {
			if diag.Suggest(name, []string{"dest"}) != "" {
				return output{}, invalid("unknown attribute %q", name).WithHint("did you mean dest?")
			}
		}
	}
	switch {
	case o.kind == "":
		return output{}, invalid("the type is missing").WithHint("write type=%s", strings.Join(outputKinds, ", type="))
	case !slices.Contains(outputKinds, o.kind):
		return output{}, suggest(invalid("unknown type %q: it must be one of %s", o.kind, strings.Join(outputKinds, ", ")), o.kind, outputKinds)
	case o.kind == "local" && (o.dest == "" || o.dest == "-"):
		return output{}, invalid("type=local needs dest=DIRECTORY")
	case (o.kind == "oci" || o.kind == "docker") && o.dest == "":
		return output{}, invalid("type=%s needs dest=FILE, or dest=- for stdout", o.kind)
	case o.kind == "tar" && o.dest == "":
		o.dest = "-"
	}
	return o, nil
}

// parseUlimit reads "NAME=SOFT[:HARD]"; -1 is unlimited.
func parseUlimit(s string) (graph.Ulimit, error) {
	name, rest, ok := strings.Cut(s, "=")
	soft, hard, two := strings.Cut(rest, ":")
	if !two {
		hard = soft
	}
	a, err1 := strconv.ParseInt(soft, 10, 64)
	b, err2 := strconv.ParseInt(hard, 10, 64)
	names := []string{"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
	switch {
	case !ok || name == "" || err1 != nil || err2 != nil:
		return graph.Ulimit{}, invalid("it must be NAME=SOFT[:HARD]").WithHint("for example --ulimit nofile=1024:4096")
	case !slices.Contains(names, name):
		err := suggest(invalid("unknown limit %q: it must be one of %s", name, strings.Join(names, ", ")), name, names)
		return graph.Ulimit{}, err
	case b != -1 && (a > b || a == -1):
		return graph.Ulimit{}, invalid("the soft limit is above the hard limit")
	}
	return graph.Ulimit{Name: name, Soft: a, Hard: b}, nil
}

// parseHost reads "HOST:IP" or "HOST=IP"; an IPv6 address may stand in brackets.
func parseHost(s string) (graph.HostIP, error) {
	i := strings.IndexAny(s, "=:")
	if i <= 0 || i == len(s)-1 {
		return graph.HostIP{}, invalid("it must be HOST:IP")
	}
	ip := strings.TrimSuffix(strings.TrimPrefix(s[i+1:], "["), "]")
	if ip != "host-gateway" && !isIP(ip) {
		return graph.HostIP{}, invalid("%q is not an IP address", ip).WithHint("give an address, or host-gateway for this machine")
	}
	return graph.HostIP{Host: s[:i], IP: ip}, nil
}

// parseBytes reads a number of bytes with an optional unit of 1024: b, k, m, g or t.
func parseBytes(s string) (int64, error) {
	bad := invalid("it must be a number of bytes, such as 512m or 2g")
	t := strings.ToLower(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	shift := 0
	if n := len(t); n > 0 {
		if i := strings.IndexByte("kmgt", t[n-1]); i >= 0 {
			shift, t = 10*(i+1), t[:n-1]
		}
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f < 0 || f != f || f*float64(int64(1)<<shift) > 1<<62 {
		return 0, bad
	}
	return int64(f * float64(int64(1)<<shift)), nil
}

// parsePlatform reads a platform of a known architecture: a misspelt one would give images that run nowhere.
func parsePlatform(s string) (graph.Platform, error) {
	p, err := graph.ParsePlatform(s)
	if err != nil {
		return p, err
	}
	if known := graph.Architectures(); !slices.Contains(known, p.Architecture) {
		return p, suggest(invalid("unknown architecture %q", p.Architecture), p.Architecture, known)
	}
	return p, nil
}

// parsePlatforms reads a comma-separated list.
func parsePlatforms(s string) ([]graph.Platform, error) {
	var out []graph.Platform
	for part := range strings.SplitSeq(s, ",") {
		p, err := parsePlatform(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// parseVariable reads "NAME=VALUE", or "NAME" for the value from the environment; a variable that is not set there is
// left out (ok is false).
func parseVariable(s string) (name, value string, ok bool, err error) {
	name, value, ok = strings.Cut(s, "=")
	if name == "" {
		return "", "", false, invalid("the name is missing").WithHint("write NAME=VALUE, or NAME for the value of the environment")
	}
	if !ok {
		value, ok = os.LookupEnv(name)
	}
	return name, value, ok, nil
}

// parsePair reads "NAME=VALUE".
func parsePair(s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", "", invalid("it must be NAME=VALUE")
	}
	return name, value, nil
}

// parseEpoch reads seconds since 1970; "" is no epoch.
func parseEpoch(s string) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, invalid("it must be a number of seconds since 1970")
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// parseNetwork reads a network mode.
func parseNetwork(s string) (graph.Network, error) {
	switch s {
	case "", "default":
		return graph.NetworkDefault, nil
	case "none", "host":
		return graph.Network(s), nil
	}
	return "", suggest(invalid("it must be default, none or host"), s, []string{"default", "none", "host"})
}
