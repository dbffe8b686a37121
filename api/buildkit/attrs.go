package buildkit

import (
	"encoding/csv"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/graph"
)

// localSession begins the attribute that says which session has a directory.
const localSession = "local-sessionid:"

// request reads the attributes of BuildKit's Dockerfile frontend. Source: frontend/dockerfile/docs, dockerui.
func request(attrs map[string]string) (dockerfile.Request, error) {
	req := dockerfile.Request{
		Filename: attrs["filename"], Target: attrs["target"],
		BuildArgs: cut(attrs, "build-arg:"), Labels: cut(attrs, "label:"), Contexts: cut(attrs, "context:"),
		ContextURL: attrs["context"], ContextName: attrs["contextkey"], DockerfileDir: attrs["dockerfilekey"], ContextSubdir: attrs["contextsubdir"],
		Hostname: first(attrs["build-arg:BUILDKIT_SANDBOX_HOSTNAME"], attrs["hostname"]),
	}
	req.LocalDocker = req.DockerfileDir != ""
	r := reader{attrs: attrs}
	req.Platforms = r.platforms()
	req.ExtraHosts = r.hosts()
	req.Limits = r.limits()
	req.Network = r.network()
	req.MultiPlatform = multi(attrs, len(req.Platforms))
	if r.err == nil {
		req.ResolveMode, r.err = resolveMode(attrs["image-resolve-mode"])
	}
	if v, ok := attrs["no-cache"]; ok {
		req.NoCache = v == ""
		if v != "" {
			req.NoCacheFilter = strings.Split(v, ",")
		}
	}
	if m := multiAttr(attrs); m != "" && r.err == nil {
		on, err := strconv.ParseBool(m)
		switch {
		case err != nil:
			r.err = diag.Errorf(diag.Invalid, "invalid boolean value for multi-platform: %s", m)
		case !on && len(req.Platforms) > 1:
			r.err = diag.Errorf(diag.Invalid, "conflicting config: returning multiple target platforms is not allowed")
		}
	}
	return req, r.err
}

func multiAttr(attrs map[string]string) string {
	return first(attrs["build-arg:BUILDKIT_MULTI_PLATFORM"], attrs["multi-platform"])
}

// multi reports whether the result is one of several platforms, even if there is only one.
func multi(attrs map[string]string, platforms int) bool {
	if on, err := strconv.ParseBool(multiAttr(attrs)); err == nil {
		return on
	}
	return platforms > 1
}

// cut returns the attributes with a prefix, without it.
func cut(attrs map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range attrs {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}

// localSessions says which session has which directory, where it is not the build's own.
func localSessions(attrs map[string]string) map[string]string { return cut(attrs, localSession) }

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// reader keeps the first error.
type reader struct {
	attrs map[string]string
	err   error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = diag.Errorf(diag.Invalid, format, args...)
	}
}

func (r *reader) fields(key string) []string {
	v := r.attrs[key]
	if v == "" {
		return nil
	}
	f, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		r.fail("%s: %s: %w", key, v, err)
	}
	return f
}

// maxPlatforms bounds the platforms of one build. Each is planned on its own.
const maxPlatforms = 200

func (r *reader) platforms() []graph.Platform {
	v := r.attrs["platform"]
	if v == "" {
		return nil
	}
	if n := strings.Count(v, ",") + 1; n > maxPlatforms {
		r.fail("the build is for %d platforms: at most %d are possible", n, maxPlatforms)
		return nil
	}
	var out []graph.Platform
	for s := range strings.SplitSeq(v, ",") {
		p, err := graph.ParsePlatform(s)
		if err != nil {
			r.fail("failed to parse target platform %s: %w", s, err)
		}
		if !slices.ContainsFunc(out, func(q graph.Platform) bool {
			return graph.FormatPlatform(q) == graph.FormatPlatform(p)
		}) {
			out = append(out, p)
		}
	}
	return out
}

func (r *reader) hosts() []graph.HostIP {
	var out []graph.HostIP
	for _, f := range r.fields("add-hosts") {
		host, ip, ok := strings.Cut(strings.ToLower(f), "=")
		switch {
		case !ok:
			r.fail("failed to parse additional hosts: invalid key-value pair %s", f)
		case net.ParseIP(strings.Trim(ip, "[]")) == nil && ip != "host-gateway":
			r.fail("failed to parse additional hosts: failed to parse IP %s", ip)
		}
		out = append(out, graph.HostIP{Host: host, IP: ip})
	}
	return out
}

func (r *reader) network() graph.Network {
	switch v := r.attrs["force-network-mode"]; v {
	case "", "sandbox", "default":
	case "none":
		return graph.NetworkNone
	case "host":
		return graph.NetworkHost
	default:
		r.fail("invalid netmode %s", v)
	}
	return graph.NetworkDefault
}

func (r *reader) number(key string, least int64) int64 {
	v := r.attrs[key]
	if v == "" {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least {
		r.fail("failed to parse resource limits: invalid %s value: %s", key, v)
	}
	return n
}

func (r *reader) limits() graph.Limits {
	l := graph.Limits{
		ShmSize: r.number("shm-size", 0), Memory: r.number("memory", 1), MemorySwap: r.number("memswap", -1),
		CPUShares: uint64(r.number("cpushares", 1)), CPUPeriod: uint64(r.number("cpuperiod", 1)), CPUQuota: r.number("cpuquota", 1),
		CPUSet: r.attrs["cpusetcpus"], Mems: r.attrs["cpusetmems"], CgroupParent: r.attrs["cgroup-parent"],
	}
	for _, f := range r.fields("ulimit") {
		name, rest, ok := strings.Cut(f, "=")
		soft, hard, two := strings.Cut(rest, ":")
		if !two {
			hard = soft
		}
		s, err1 := strconv.ParseInt(soft, 10, 64)
		h, err2 := strconv.ParseInt(hard, 10, 64)
		if !ok || err1 != nil || err2 != nil || (h != -1 && s > h) {
			r.fail("failed to parse ulimit: invalid ulimit %s", f)
		}
		l.Ulimits = append(l.Ulimits, graph.Ulimit{Name: name, Soft: s, Hard: h})
	}
	return l
}
