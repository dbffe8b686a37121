package registry

import (
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// DockerHub is the registry that references without a host name mean.
const DockerHub = "docker.io"

// Ref is an image reference in full. Tag is "latest" if neither tag nor digest was given; with a digest, the tag is for
// people only.
type Ref struct {
	Host   string        // "docker.io", "localhost:5000"
	Repo   string        // "library/debian"
	Tag    string        // "12", or "" when only a digest was given
	Digest digest.Digest // "" when only a tag was given
}

// ParseRef parses what people write: debian, debian:12, host:5000/a/b@sha256:…. The rules are those of Docker,
// and one server has one name: see graph.NormalRef.
func ParseRef(s string) (Ref, error) {
	full, err := graph.NormalRef(s)
	if err != nil {
		return Ref{}, err
	}
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return Ref{}, diag.Errorf(diag.Invalid, "invalid image reference %q: %w", s, err)
	}
	r := Ref{Host: reference.Domain(named), Repo: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
	}
	return r, nil
}

// Name returns the reference without tag and digest.
func (r Ref) Name() string { return r.Host + "/" + r.Repo }

// String returns the full reference.
func (r Ref) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// WithDigest returns the reference pinned to a digest.
func (r Ref) WithDigest(d digest.Digest) Ref {
	r.Digest = d
	return r
}

// object is what a manifest URL ends with: the digest if there is one.
func (r Ref) object() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
