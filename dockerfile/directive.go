package dockerfile

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
)

// ForeignSyntax is the error of a Dockerfile that asks for a frontend which is not this package. Who can run it in its image
// does.
type ForeignSyntax struct {
	Ref     string      // the image
	Cmdline string      // what the Dockerfile says, the image first
	At      []diag.Span // where it says so
	Err     error
}

func (e *ForeignSyntax) Error() string { return e.Err.Error() }

func (e *ForeignSyntax) Unwrap() error { return e.Err }

// checkSyntax looks at `# syntax=` and BUILDKIT_SYNTAX. The images of Docker's own Dockerfile frontend are this
// package's language; another image is a *ForeignSyntax.
func checkSyntax(req *Request) error {
	var ref, cmdline string
	var at []diag.Span
	if v := strings.TrimSpace(req.BuildArgs["BUILDKIT_SYNTAX"]); v != "" {
		ref, _, _ = strings.Cut(v, " ")
		cmdline = v
	} else if req.Source != nil {
		r, line, loc, ok := parser.DetectSyntax(req.Source.Data)
		if !ok {
			return nil
		}
		ref, cmdline, at = r, line, spans(req.Source, loc)
	}
	if ref == "" || ref == "dockerfile.v0" || req.IgnoreSyntax {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return invalidf("invalid syntax image %q: %w", ref, err).WithSpan(at...)
	}
	switch named.Name() {
	case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
		return nil
	}
	if len(at) > 0 {
		at[0] = pointAt(at[0], "'"+ref+"'")
	}
	return &ForeignSyntax{Ref: ref, Cmdline: cmdline, At: at, Err: diag.Errorf(diag.Unsupported, "frontend image %q cannot be run: only the built-in Dockerfile frontend is available", ref).
		WithSpan(at...).WithHint("remove the syntax line, or set the build argument BUILDKIT_SYNTAX=dockerfile.v0 to ignore it")}
}

// checkConfig is the lint configuration: BUILDKIT_DOCKERFILE_CHECK, else `# check=`.
func checkConfig(req *Request) (lint.Config, error) {
	if v, ok := req.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		c, err := lint.ParseConfig(v)
		if err != nil {
			return c, invalidf("BUILDKIT_DOCKERFILE_CHECK: %w", err)
		}
		return c, nil
	}
	if req.Source == nil {
		return lint.Config{}, nil
	}
	v, _, loc, _ := parser.ParseDirective("check", req.Source.Data)
	c, err := lint.ParseConfig(v)
	return c, located(req.Source, err, loc)
}

func parseBool(name, v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalidf("invalid value of %s: %q is not true or false", name, v)
	}
	return b, nil
}

// proxyFromArgs takes the predefined proxy arguments, in any case of the name.
func proxyFromArgs(args map[string]string) *graph.ProxyEnv {
	var p graph.ProxyEnv
	found := false
	for _, k := range slices.Sorted(maps.Keys(args)) {
		if f := proxyField(&p, k); f != nil {
			*f, found = args[k], true
		}
	}
	if !found {
		return nil
	}
	return &p
}

func proxyField(p *graph.ProxyEnv, name string) *string {
	switch strings.ToLower(name) {
	case "http_proxy":
		return &p.HTTP
	case "https_proxy":
		return &p.HTTPS
	case "ftp_proxy":
		return &p.FTP
	case "no_proxy":
		return &p.No
	case "all_proxy":
		return &p.All
	}
	return nil
}

// unusedArgs warns of build arguments that no ARG of the file declares and that mean nothing by themselves.
func (p *planner) unusedArgs() []diag.Warning {
	declared := p.file.declared()
	var unused []string
	var detail []string
	for _, k := range slices.Sorted(maps.Keys(p.req.BuildArgs)) {
		if slices.Contains(declared, k) || proxyField(&graph.ProxyEnv{}, k) != nil || strings.HasPrefix(k, "BUILDKIT_") || k == "SOURCE_DATE_EPOCH" {
			continue
		}
		if _, ok := p.globals.Get(k); ok {
			continue
		}
		unused = append(unused, k)
		if m := diag.Suggest(k, declared); m != "" {
			detail = append(detail, k+": did you mean "+m+"?")
		}
	}
	if len(unused) == 0 {
		return nil
	}
	msg := "One or more build-args [" + strings.Join(unused, " ") + "] were not consumed"
	if len(detail) > 0 {
		msg += " (" + strings.Join(detail, "; ") + ")"
	}
	return []diag.Warning{{Msg: msg, Level: 1}}
}
