package provenance

import (
	"maps"
	"path"
	"reflect"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Request is what a frontend was asked for. It is never changed once it is made: several results share it.
type Request struct {
	Frontend string
	Args     map[string]string   // as asked, but for what is of the host, and for passwords
	Inputs   map[string]*Request // who made the trees that were passed, by name
	Root     *Request            // what the user had asked for, if that is another request
}

// ofHost are arguments that say nothing of the result.
var ofHost = map[string]bool{"cgroup-parent": true, "image-resolve-mode": true, "platform": true, "cache-imports": true}

// NewRequest keeps of a request what provenance tells. Source: BuildKit's frontend attributes.
func NewRequest(frontend string, attrs map[string]string) *Request {
	r := &Request{Frontend: frontend, Args: map[string]string{}}
	context := contextKey(attrs)
	for k, v := range attrs {
		if ofHost[k] || strings.HasPrefix(k, "attest:") {
			continue
		}
		if k == context || strings.HasPrefix(k, "context:") || k == "vcs:source" {
			v = Redact(v)
		}
		r.Args[k] = diag.Redact(v)
	}
	return r
}

func contextKey(args map[string]string) string {
	if v := args["contextkey"]; v != "" {
		return v
	}
	if args["input:context"] != "" {
		return "input:context"
	}
	return "context"
}

// Empty reports whether nothing was asked for.
func (r *Request) Empty() bool {
	return r == nil || r.Frontend == "" && len(r.Args) == 0 && len(r.Inputs) == 0
}

// Same reports whether two requests ask for the same, whoever had asked for them.
func (r *Request) Same(o *Request) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.Frontend == o.Frontend && maps.Equal(r.Args, o.Args) && len(r.Inputs) == len(o.Inputs) && (len(r.Inputs) == 0 || reflect.DeepEqual(r.Inputs, o.Inputs))
}

// WithoutRoot returns the request as an input of another.
func (r *Request) WithoutRoot() *Request {
	c := *r
	c.Root = nil
	return &c
}

// parameters and configSource are requests as documents have them.
type parameters struct {
	Frontend      string              `json:"frontend,omitempty"`
	Args          map[string]string   `json:"args,omitempty"`
	Secrets       []need              `json:"secrets,omitempty"`
	SSH           []need              `json:"ssh,omitempty"`
	Locals        []local             `json:"locals,omitempty"`
	Inputs        map[string]*request `json:"inputs,omitempty"`
	Root          *request            `json:"root,omitempty"`
	Compatibility int                 `json:"compatibilityVersion,omitempty"`
}

type request struct {
	ConfigSource configSource `json:"configSource"`
	Request      *parameters  `json:"request,omitempty"`
}

type configSource struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
	Path   string            `json:"path,omitempty"`
}

type need struct {
	ID       string `json:"id"`
	Optional bool   `json:"optional,omitempty"`
}

type local struct {
	Name string `json:"name"`
}

// document writes a request: where the Dockerfile was is not among the arguments. In min mode build arguments and labels are left
// out, and whole is false then.
func (r *Request) document(src *Sources, full bool) (out *request, whole bool) {
	out, whole = &request{Request: &parameters{Frontend: r.Frontend}}, true
	args := maps.Clone(r.Args)
	if key := contextKey(args); args[key] != "" {
		out.ConfigSource.URI, out.ConfigSource.Digest = src.find(args[key])
		delete(args, key)
	}
	if args["filename"] != "" {
		out.ConfigSource.Path = args["filename"]
		delete(args, "filename")
	}
	if !full {
		n := len(args)
		maps.DeleteFunc(args, func(k, _ string) bool { return strings.HasPrefix(k, "build-arg:") || strings.HasPrefix(k, "label:") })
		whole = n == len(args)
	}
	if len(args) > 0 {
		out.Request.Args = args
	}
	for name, in := range r.Inputs {
		if out.Request.Inputs == nil {
			out.Request.Inputs = map[string]*request{}
		}
		doc, ok := in.document(src, full)
		out.Request.Inputs[name], whole = doc, whole && ok
	}
	if !r.Root.Empty() && !r.Root.Same(r) {
		doc, ok := r.Root.document(src, full)
		out.Request.Root, whole = doc, whole && ok
	}
	return out, whole
}

// find returns the URI and the digest of the material that a context's URL means.
func (s *Sources) find(uri string) (string, map[string]string) {
	plain, fragment, _ := strings.Cut(uri, "#")
	if remote, login, err := graph.NormalRemote(plain); err == nil {
		plain = masked(remote, login)
	}
	ref, subdir, _ := strings.Cut(fragment, ":")
	for _, g := range s.Git {
		remote, gitRef, _ := strings.Cut(g.URL, "#")
		if remote != plain || ref != "" && gitRef != ref {
			continue
		}
		u := g.URL
		if subdir = strings.TrimPrefix(path.Join("/", subdir), "/"); subdir != "" {
			if gitRef == "" {
				u += "#"
			}
			u += ":" + subdir
		}
		return u, commitDigest(g.Commit)
	}
	url := uri
	if u, login, err := graph.NormalURL(uri); err == nil {
		url = masked(u, login)
	}
	for _, h := range s.HTTP {
		if h.URL == url {
			return h.URL, digestSet(h.Digest)
		}
	}
	return uri, nil
}

func digestSet(d graph.Digest) map[string]string {
	if d == "" {
		return nil
	}
	return map[string]string{d.Algorithm().String(): d.Encoded()}
}

// commitDigest names a commit by the kind of its id.
func commitDigest(id string) map[string]string {
	if len(id) == 64 {
		return map[string]string{"sha256": id}
	}
	return map[string]string{"sha1": id}
}
