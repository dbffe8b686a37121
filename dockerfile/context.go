package dockerfile

import (
	"context"
	"errors"
	"net/url"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// httpName is the name of a downloaded context as a file.
const httpName = "context"

func (r *Request) remote() bool { return r.Context != nil || r.ContextURL != "" }

func (r *Request) contextName() string {
	if r.ContextName == "" {
		return "context"
	}
	return r.ContextName
}

// mainContext makes the build context: one vertex, whatever instructions read it.
func (sh *shared) mainContext(ctx context.Context) (graph.Edge, error) {
	req := sh.req
	if !req.remote() {
		op := &graph.Local{Name: req.contextName(), Exclude: sh.exclude, SharedKey: req.sharedKey(req.contextName())}
		return edge(graph.New(op, nil, graph.Named("[internal] load build context"))), nil
	}
	e, _, err := sh.remoteContext(ctx)
	return e, err
}

func (r *Request) sharedKey(name string) string {
	if k := r.SharedKeys[name]; k != "" {
		return k
	}
	return name
}

// remoteContext makes a context that is not a directory of the client. The second result is true if it is a single
// file: an http context that is no archive is the Dockerfile itself.
func (sh *shared) remoteContext(ctx context.Context) (graph.Edge, bool, error) {
	req := sh.req
	var e graph.Edge
	single := false
	switch {
	case req.Context != nil:
		e = *req.Context
	default:
		git, ok, err := ParseGit(req.ContextURL, true)
		if err != nil {
			return e, false, err
		}
		if ok {
			if v := req.BuildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]; v != "" {
				keep, err := parseBool("BUILDKIT_CONTEXT_KEEP_GIT_DIR", v)
				if err != nil {
					return e, false, err
				}
				git.KeepDir = git.KeepDir || keep
			}
			if git.Advice, err = req.gitAdvice(); err != nil {
				return e, false, err
			}
			git.MTimeCommit = git.MTimeCommit || req.BuildArgs["SOURCE_DATE_EPOCH"] != "" || req.Epoch != nil
			e = edge(graph.New(git, nil, graph.Named("[internal] load git source %s", req.ContextURL)))
			break
		}
		if !isHTTP(req.ContextURL) {
			return e, false, invalidf("%q is no context: it must be a git or http(s) URL", req.ContextURL)
		}
		e = edge(graph.New(&graph.HTTP{URL: req.ContextURL, Filename: httpName}, nil, graph.Named("[internal] load remote build context")))
		head, err := sh.r.ReadFile(ctx, e, "/"+httpName, 1024)
		if err != nil {
			return e, false, diag.Errorf(diag.KindOf(err), "failed to read downloaded context: %w", err)
		}
		if single = !isArchive(head); !single {
			e = copyInto(e, graph.Copy{Src: "/" + httpName, Dest: "/", Unpack: true, CreateDest: true}, "[internal] unpack remote build context")
		}
	}
	if d := path.Join("/", req.ContextSubdir); d != "/" && !single {
		e = copyInto(e, graph.Copy{Src: d, Dest: "/", DirContents: true, CreateDest: true}, "[internal] select directory of build context")
	}
	return e, single, nil
}

func copyInto(from graph.Edge, c graph.Copy, name string) graph.Edge {
	op := &graph.File{Actions: []graph.Action{{In: graph.None, From: 0, Out: 0, Copy: &c}}}
	return edge(graph.New(op, []graph.Edge{from}, graph.Named("%s", name)))
}

// isArchive tells a tar archive, plain or compressed, by its first bytes.
func isArchive(b []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(b), magic) {
			return true
		}
	}
	return len(b) > 262 && string(b[257:262]) == "ustar"
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// namedContext is an entry of Request.Contexts that applies.
type namedContext struct {
	p           *planner
	key, source string
	title       string // of its step; "" = made from key
	at          []diag.Span
}

// found is a tree that a base can be, with its configuration if it is an image.
type found struct {
	edge graph.Edge
	cfg  *image.Config
	base *image.Base
}

// Found is a named context: a tree, with its configuration if it is an image.
type Found struct {
	Edge   graph.Edge
	Config *image.Config
}

// NamedContext makes the tree that a request's Contexts have under a name, which is that of an image; nil = there is none.
func NamedContext(ctx context.Context, req Request, r Resolver, name string) (*Found, error) {
	sh, err := newShared(ctx, &req, r)
	if err != nil {
		return nil, err
	}
	p := sh.planner(req.firstPlatform(), nil)
	c, err := p.namedContext(name, nil)
	if err != nil || c == nil {
		return nil, err
	}
	f, err := c.load(ctx, p.target)
	return &Found{f.edge, f.cfg}, err
}

// namedContext looks up what replaces an image or a stage, first for the platform, then for all; nil = nothing does.
func (p *planner) namedContext(name string, pf *graph.Platform) (*namedContext, error) {
	if len(p.req.Contexts) == 0 || strings.EqualFold(name, scratch) || strings.EqualFold(name, "context") {
		return nil, nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, invalidf("invalid context name %s: %w", name, err)
	}
	name = strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	if pf == nil {
		pf = &p.target
	}
	for _, key := range []string{name + "::" + graph.FormatPlatform(graph.NormalizePlatform(*pf)), name} {
		if v, ok := p.req.Contexts[key]; ok {
			return &namedContext{p: p, key: key, source: v}, nil
		}
	}
	return nil, nil
}

// load makes the tree of a named context.
func (c *namedContext) load(ctx context.Context, pf graph.Platform) (found, error) {
	kind, rest, ok := strings.Cut(c.source, ":")
	if !ok {
		return found{}, invalidf("invalid context specifier %s for %s", c.source, c.key).
			WithHint("write it as docker-image://REF, oci-layout://…, local:NAME or a URL")
	}
	if strings.HasPrefix(kind, "git@") {
		kind = "git"
	}
	switch kind {
	case "docker-image":
		return c.image(ctx, strings.TrimPrefix(rest, "//"), pf)
	case "oci-layout", "oci-archive":
		return c.ociLayout(ctx, pf)
	case "local":
		return c.local(ctx, rest)
	case "git", "ssh", "http", "https":
		return c.url()
	case "input", "target":
		name := rest
		if kind == "target" {
			name = c.source
		}
		e, cfg, err := c.p.r.Input(ctx, name)
		if err != nil {
			return found{}, diag.Errorf(diag.KindOf(err), "context %s: %w", c.key, err)
		}
		return found{edge: e, cfg: cfg}, nil
	}
	err := invalidf("unsupported context source %s for %s", kind, c.key)
	return found{}, didYouMean(err, kind, []string{"docker-image", "oci-layout", "oci-archive", "local", "git", "http", "https", "input", "target"})
}

func (c *namedContext) image(ctx context.Context, ref string, pf graph.Platform) (found, error) {
	if ref == scratch {
		return found{}, nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return found{}, invalidf("context %s: invalid image %q: %w", c.key, ref, err)
	}
	full := reference.TagNameOnly(named).String()
	res, err := c.p.r.Image(ctx, full, pf, c.p.req.ResolveMode)
	if err != nil {
		return found{}, diag.Errorf(diag.KindOf(err), "context %s: %w", c.key, err)
	}
	if res.Other != nil {
		return found{edge: edge(graph.New(res.Other, nil, graph.On(pf), graph.Named("[context %s] %s", c.key, ref)))}, nil
	}
	if full, err = pinned(full, res); err != nil {
		return found{}, err
	}
	f := found{cfg: res.Config, base: &image.Base{Name: full, Digest: res.Digest}}
	if res.Config == nil || hasLayers(res.Config) {
		op := &graph.Image{Ref: full, Mode: c.p.req.ResolveMode}
		f.edge = edge(graph.New(op, nil, graph.On(pf), graph.Named("[context %s] %s", c.key, ref)))
	}
	return f, nil
}

// ociLayout makes the tree of an image in an OCI layout: the source is "oci-layout://STORE@sha256:…", or "oci-archive:FILE",
// of which the resolver makes a store.
func (c *namedContext) ociLayout(ctx context.Context, pf graph.Platform) (found, error) {
	ref, isLayout := strings.CutPrefix(c.source, "oci-layout:")
	if isLayout {
		ref = strings.TrimPrefix(ref, "//")
	}
	res, err := c.p.r.OCILayout(ctx, ref, pf)
	if err != nil {
		return found{}, diag.Errorf(diag.KindOf(err), "context %s: %w", c.key, err)
	}
	dgst := res.Digest
	name, given, _ := strings.Cut(ref, "@")
	if dgst == "" {
		dgst = graph.Digest(given)
	}
	if err := dgst.Validate(); err != nil {
		return found{}, invalidf("oci-layout reference %q has no digest", ref)
	}
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") && isLayout {
		name = name[:i]
	}
	title := c.title
	if title == "" {
		title = "[context " + c.key + "] OCI load from client"
	}
	op := &graph.OCILayout{Ref: name + "@" + dgst.String(), Store: name}
	if isLayout {
		// The digest finds the image. The store's name says nothing: for people it is called as in the Dockerfile.
		key, _, _ := strings.Cut(c.key, "::")
		if r, err := reference.ParseNormalizedNamed(key); err == nil {
			op.Ref = r.Name() + "@" + dgst.String()
		}
	}
	v := graph.New(op, nil, graph.On(pf), graph.Named("%s", title), graph.From(c.at...))
	return found{edge: edge(v), cfg: res.Config, base: &image.Base{Name: op.Ref, Digest: dgst}}, nil
}

func (c *namedContext) local(ctx context.Context, name string) (found, error) {
	key := "context:" + c.key + "-" + c.p.req.sharedKey(name)
	probe := &graph.Local{Name: name, Follow: []string{".dockerignore"}, SharedKey: key + "-.dockerignore"}
	e := edge(graph.New(probe, nil, graph.Named("[context %s] load .dockerignore", c.key)))
	data, err := c.p.r.ReadFile(ctx, e, "/.dockerignore", MaxInput)
	if err != nil && diag.KindOf(err) != diag.NotFound {
		return found{}, err
	}
	exclude, err := ignorefile.ReadAll(strings.NewReader(string(data)))
	if err != nil {
		return found{}, invalidf("failed parsing .dockerignore of context %s: %w", c.key, err)
	}
	op := &graph.Local{Name: name, Exclude: exclude, SharedKey: key}
	return found{edge: edge(graph.New(op, nil, graph.Named("[context %s] load from client", c.key)))}, nil
}

func (c *namedContext) url() (found, error) {
	git, ok, err := ParseGit(c.source, false)
	if err != nil {
		return found{}, err
	}
	if ok {
		if git.Advice, err = c.p.req.gitAdvice(); err != nil {
			return found{}, err
		}
		return found{edge: edge(graph.New(git, nil, graph.Named("[context %s] %s", c.key, c.source)))}, nil
	}
	if _, err := url.Parse(c.source); err != nil || !isHTTP(c.source) {
		return found{}, errors.Join(invalidf("invalid git context %s for %s", c.source, c.key), err)
	}
	op := &graph.HTTP{URL: c.source, Filename: httpName}
	return found{edge: edge(graph.New(op, nil, graph.Named("[context %s] %s", c.key, c.source)))}, nil
}
