package buildkit

import (
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/diag"
)

// The frontends by their names: this program's, and programs in images.
const (
	dockerfileFrontend = "dockerfile.v0"
	gatewayFrontend    = "gateway.v0"
)

// Frontends say which frontends builds may use.
type Frontends struct {
	NoDockerfile, NoGateway bool
	Repositories            []string // of images that may be run, without tags; empty = all
}

// NewRepositories checks names of repositories, and writes them in full.
func NewRepositories(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		r, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "the repository %q: %w", n, err)
		}
		out = append(out, r.Name())
	}
	return out, nil
}

// allows reports whether the image of a frontend may be run.
func (f *Frontends) allows(source string) bool {
	if len(f.Repositories) == 0 {
		return true
	}
	r, err := reference.ParseNormalizedNamed(source)
	return err == nil && slices.Contains(f.Repositories, r.Name())
}

// namesBuiltin reports whether a request for an image means this program's frontend: by its name, unless a named context is an image
// of the same name.
func namesBuiltin(attrs map[string]string) bool {
	if attrs["source"] != dockerfileFrontend {
		return false
	}
	for k := range attrs {
		if k == "context:"+dockerfileFrontend || strings.HasPrefix(k, "context:"+dockerfileFrontend+"::") {
			return false
		}
	}
	return true
}

// asBuiltin turns a client's request to run this program's frontend as an image into one for the frontend itself.
func asBuiltin(req *control.SolveRequest) {
	if req.Frontend != gatewayFrontend || !namesBuiltin(req.FrontendAttrs) {
		return
	}
	req.Frontend, req.FrontendAttrs = dockerfileFrontend, maps.Clone(req.FrontendAttrs)
	delete(req.FrontendAttrs, "source")
}
