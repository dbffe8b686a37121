package dockerfile

import (
	"context"
	"path"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// MaxInput bounds a Dockerfile and an ignore file, in bytes.
const MaxInput = 16 << 20

// ReadInputs reads the Dockerfile, unless the request has it, and the ignore file: `<Dockerfile>.dockerignore` beside
// the Dockerfile, else `.dockerignore` in the context. "Dockerfile" may be spelt "dockerfile". A remote context holds
// its own Dockerfile unless LocalDocker is set, and is not filtered. It returns the request with both. A Dockerfile for another
// frontend is a *ForeignSyntax.
func ReadInputs(ctx context.Context, req Request, r Resolver) (Request, error) {
	in := &inputs{ctx: ctx, req: &req, r: r}
	if req.Filename == "" {
		req.Filename = "Dockerfile"
	}
	var dir graph.Edge
	if req.remote() && !req.LocalDocker {
		sh := &shared{req: &req, r: r}
		e, single, err := sh.remoteContext(ctx)
		if err != nil {
			return req, err
		}
		if dir = e; single {
			req.Filename = httpName
		}
	} else {
		dir = in.dockerfileDir()
	}
	if req.Source == nil {
		if err := in.readSource(dir); err != nil {
			return req, err
		}
	}
	if err := checkSyntax(&req); err != nil { // what follows may mean nothing to another frontend
		return req, err
	}
	if req.remote() || req.Ignore != nil {
		return req, nil
	}
	data, ok, err := in.read(dir, req.Filename+".dockerignore")
	if err != nil {
		return req, err
	}
	name := req.Filename + ".dockerignore"
	if !ok {
		name = ".dockerignore"
		op := &graph.Local{Name: req.contextName(), Follow: []string{name}, SharedKey: req.sharedKey(req.contextName()) + "-" + name}
		if data, ok, err = in.read(edge(graph.New(op, nil, graph.Named("[internal] load .dockerignore"))), name); err != nil {
			return req, err
		}
	}
	if ok {
		req.Ignore = &diag.Source{Name: name, Data: data}
	}
	return req, nil
}

type inputs struct {
	ctx context.Context
	req *Request
	r   Resolver
}

// dockerfileDir is the part of the client's directory in which the Dockerfile is.
func (in *inputs) dockerfileDir() graph.Edge {
	name := in.req.DockerfileDir
	if name == "" {
		name = "dockerfile"
	}
	files := []string{in.req.Filename, in.req.Filename + ".dockerignore"}
	if path.Base(in.req.Filename) == "Dockerfile" {
		files = append(files, lowerName(in.req.Filename))
	}
	op := &graph.Local{Name: name, Follow: files, SharedKey: in.req.sharedKey(name)}
	return edge(graph.New(op, nil, graph.Named("[internal] load build definition from %s", in.req.Filename)))
}

func (in *inputs) readSource(dir graph.Edge) error {
	name := in.req.Filename
	data, ok, err := in.read(dir, name)
	if err == nil && !ok && path.Base(name) == "Dockerfile" {
		data, ok, err = in.read(dir, lowerName(name))
	}
	if err != nil {
		return err
	}
	if !ok {
		return diag.Errorf(diag.NotFound, "failed to read dockerfile: %s is not there", name).
			WithHint("name the Dockerfile with --file if it is elsewhere")
	}
	in.req.Source = &diag.Source{Name: name, Data: data, Origin: dir}
	return nil
}

func (in *inputs) read(dir graph.Edge, name string) ([]byte, bool, error) {
	data, err := in.r.ReadFile(in.ctx, dir, path.Join("/", name), MaxInput+1)
	switch {
	case err != nil && diag.KindOf(err) == diag.NotFound:
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case len(data) > MaxInput:
		return nil, false, diag.Errorf(diag.Exhausted, "%s exceeds maximum allowed size of %d MiB", name, MaxInput>>20)
	}
	return data, true, nil
}

func lowerName(p string) string { return path.Join(path.Dir(p), strings.ToLower(path.Base(p))) }
