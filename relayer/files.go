package relayer

import (
	"context"
	"debug/buildinfo"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// xattrs takes the attribute user.component, which whoever made the file has set, for its component. What is claimed so is
// claimed even where things change often.
type xattrs struct{}

func (xattrs) Name() string { return "xattr" }

func (xattrs) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	byName := map[string]*Component{}
	var order []string
	for e := range fs.Entries() {
		name := e.Xattrs["user.component"]
		if name == "" {
			continue
		}
		c := byName[name]
		if c == nil {
			c = &Component{Name: "xattr:" + name}
			byName[name] = c
			order = append(order, name)
		}
		if e.Type == layer.Dir {
			c.Dirs = append(c.Dirs, e.Path)
		} else {
			c.Paths = append(c.Paths, e.Path)
		}
	}
	var out []Component
	for _, n := range order {
		out = append(out, *byName[n])
	}
	return out, nil
}

// binaries takes Go programs and Java archives for components of their own, near the top: they are what is deployed.
type binaries struct{}

func (binaries) Name() string { return "binary" }

func (binaries) Find(ctx context.Context, fs *layer.FS) ([]Component, error) {
	var out []Component
	for e := range fs.Entries() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if e.Type != layer.File || isVolatile(e.Path) {
			continue
		}
		if slices.Contains([]string{".jar", ".war", ".ear"}, path.Ext(e.Path)) || e.Mode&0o111 != 0 && e.Size > 64<<10 && isGo(e) {
			out = append(out, Component{Name: "file:" + e.Path, Paths: []string{e.Path}, Late: true})
		}
	}
	return out, nil
}

// isGo reports whether a file is a Go program: one with build information.
func isGo(e *layer.Entry) bool {
	r, err := e.Open()
	if err != nil {
		return false
	}
	defer r.Close()
	at, ok := r.(io.ReaderAt)
	if !ok {
		return false
	}
	_, err = buildinfo.Read(at)
	return err == nil
}

// bigFile is the size from which a file is a component of its own.
const bigFile = 1 << 20

// big takes what is left and big.
type bigFiles struct{ min int64 }

func (bigFiles) Name() string { return "big" }

func (b bigFiles) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	var out []Component
	for e := range fs.Entries() {
		if e.Type == layer.File && e.Size >= b.min {
			out = append(out, Component{Name: "file:" + e.Path, Paths: []string{e.Path}})
		}
	}
	return out, nil
}

// set changes a setting of a generator.
func set(g Generator, kv string, read func(string) ([]byte, error)) (Generator, error) {
	k, v, _ := strings.Cut(kv, "=")
	switch g := g.(type) {
	case bigFiles:
		if k == "min" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 1 {
				return nil, diag.Errorf(diag.Invalid, "generator big: min=%s is no number of bytes", v)
			}
			g.min = n
			return g, nil
		}
	case nix:
		if k == "graph" {
			data, err := read(v)
			if err != nil {
				return nil, diag.Errorf(diag.Invalid, "generator nix: %w", err)
			}
			g.graph, err = readGraph(data)
			return g, err
		}
	}
	return nil, diag.Errorf(diag.Invalid, "generator %s: unknown setting %q", g.Name(), kv).WithHint("big,min=BYTES and nix,graph=FILE are known")
}
