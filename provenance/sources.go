package provenance

import (
	"cmp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Image is an image that was used.
type Image struct {
	Ref      string
	Platform *graph.Platform
	Digest   graph.Digest // of the manifest or index; "" if there is none
	Local    bool         // it was in an OCI layout, not in a registry
}

// Blob is a blob that was used as a file.
type Blob struct {
	Ref    string // NAME@DIGEST
	Digest graph.Digest
	Local  bool
}

// Git is a commit that was used.
type Git struct {
	URL    string // with #REF
	Commit string
	Bundle string // the blob that the commit came from, as docker-image+blob://REF or oci-layout+blob://REF; "" = none
}

// Download is a file that was downloaded.
type Download struct {
	URL    string
	Digest graph.Digest
}

// Need is a secret, or an ssh agent.
type Need struct {
	ID       string
	Optional bool
}

// Sources is what a build reads, each thing once.
type Sources struct {
	Images     []Image
	Blobs      []Blob
	Git        []Git
	HTTP       []Download
	Locals     []string
	Secrets    []Need
	SSH        []Need
	Network    bool // a step could use the network
	Incomplete bool // there was more, of which nothing is known
	Proxied    bool // steps reached the network by a proxy that recorded what they fetched
	Missed     []Missed
}

// Missed is a request of a step whose answer is not a material. Reason is a word of BuildKit's.
type Missed struct {
	Step   string `json:"name,omitempty"`
	Method string `json:"method,omitempty"`
	URL    string `json:"uri,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Fetched adds what a step has fetched.
func (s *Sources) Fetched(done []Download, missed []Missed) {
	for i := range done {
		done[i].URL = diag.Redact(done[i].URL)
	}
	for i := range missed {
		missed[i].Step, missed[i].URL = diag.Redact(missed[i].Step), diag.Redact(missed[i].URL)
	}
	s.HTTP, s.Missed, s.Proxied = append(s.HTTP, done...), append(s.Missed, missed...), true
	s.tidy()
}

// IncompleteError says that what a build was made from is not known in full, though it was to be.
type IncompleteError struct {
	Locals []string
	Missed []Missed
	err    error
}

func (e *IncompleteError) Error() string { return e.err.Error() }
func (e *IncompleteError) Unwrap() error { return e.err }

// Collect finds what the vertices below some edges read. pin tells what a source stood for: the digest of an image's manifest or of
// a download, or a commit.
func Collect(roots []graph.Edge, pin func(*graph.Vertex) (string, error)) (*Sources, error) {
	s := &Sources{}
	var err error
	graph.Walk(roots, func(v *graph.Vertex) {
		if err == nil {
			err = s.add(v, pin)
		}
	})
	if err != nil {
		return nil, err
	}
	s.tidy()
	return s, nil
}

func (s *Sources) add(v *graph.Vertex, pin func(*graph.Vertex) (string, error)) error {
	switch o := v.Op.(type) {
	case *graph.Image, *graph.OCILayout, *graph.Git, *graph.HTTP:
		p, err := pin(v)
		if err != nil {
			return err
		}
		s.pinned(v, p)
	case *graph.Blob:
		b := Blob{Ref: o.Ref, Local: o.Layout}
		if _, d, ok := strings.Cut(o.Ref, "@"); ok {
			b.Digest = graph.Digest(d)
		}
		s.Blobs = append(s.Blobs, b)
	case *graph.Local:
		s.Locals = append(s.Locals, o.Name)
	case *graph.Exec:
		s.exec(o)
	case *graph.Build:
		s.Incomplete = true
	}
	return nil
}

func (s *Sources) pinned(v *graph.Vertex, pin string) {
	platform := v.Platform
	switch o := v.Op.(type) {
	case *graph.Image:
		s.Images = append(s.Images, Image{Ref: o.Ref, Platform: &platform, Digest: graph.Digest(pin)})
	case *graph.OCILayout:
		s.Images = append(s.Images, Image{Ref: o.Ref, Platform: &platform, Digest: graph.Digest(pin), Local: true})
	case *graph.Git:
		u := masked(o.Remote, o.Login)
		if o.Ref != "" {
			u += "#" + o.Ref
		}
		s.Git = append(s.Git, Git{URL: u, Commit: pin, Bundle: o.BundleFrom})
		for _, id := range []string{o.AuthToken, o.AuthHeader} {
			s.secret(id, true)
		}
		if o.SSH != "" {
			s.agent(o.SSH, true)
		}
	case *graph.HTTP:
		s.HTTP = append(s.HTTP, Download{URL: masked(o.URL, o.Login), Digest: graph.Digest(pin)})
		s.secret(o.AuthHeader, true)
	}
}

func (s *Sources) exec(o *graph.Exec) {
	for _, m := range o.Mounts {
		switch m.Type {
		case graph.MountSecret:
			s.secret(m.ID, m.Optional)
		case graph.MountSSH:
			s.agent(m.ID, m.Optional)
		}
	}
	for _, e := range o.SecretEnv {
		s.secret(e.ID, e.Optional)
	}
	s.Network = s.Network || o.Network != graph.NetworkNone
}

func (s *Sources) secret(id string, optional bool) {
	if id != "" {
		s.Secrets = addNeed(s.Secrets, Need{id, optional})
	}
}

func (s *Sources) agent(id string, optional bool) {
	s.SSH = addNeed(s.SSH, Need{cmp.Or(id, "default"), optional})
}

// addNeed adds what is needed; once it is not optional, it stays so.
func addNeed(list []Need, n Need) []Need {
	for i := range list {
		if list[i].ID == n.ID {
			list[i].Optional = list[i].Optional && n.Optional
			return list
		}
	}
	return append(list, n)
}

// tidy sorts, and drops what is there twice. An image by digest goes if it is there by the same name without.
func (s *Sources) tidy() {
	named := map[string]bool{}
	for _, i := range s.Images {
		if tag, pinned := nameTag(i.Ref); !pinned {
			named[tag] = true
		}
	}
	s.Images = slices.DeleteFunc(s.Images, func(i Image) bool {
		tag, pinned := nameTag(i.Ref)
		return pinned && named[tag]
	})
	key := func(i Image) string {
		if i.Platform == nil {
			return i.Ref
		}
		n := graph.NormalizePlatform(*i.Platform)
		n.OSFeatures = nil
		return i.Ref + " " + graph.FormatPlatform(n)
	}
	s.Images = sorted(s.Images, key)
	s.Blobs = sorted(s.Blobs, func(b Blob) string { return b.Ref })
	s.Git = sorted(s.Git, func(g Git) string { return g.URL + " " + g.Bundle })
	s.HTTP = sorted(s.HTTP, func(d Download) string { return d.URL })
	s.Locals = sorted(s.Locals, func(l string) string { return l })
	s.Secrets = sorted(s.Secrets, func(n Need) string { return n.ID })
	s.SSH = sorted(s.SSH, func(n Need) string { return n.ID })
}

func sorted[T any](list []T, key func(T) string) []T {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	return slices.CompactFunc(list, func(a, b T) bool { return key(a) == key(b) })
}

// nameTag returns NAME:TAG, and whether the reference has a digest too.
func nameTag(ref string) (string, bool) {
	r, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref, false
	}
	_, pinned := r.(reference.Canonical)
	tag := "latest"
	if t, ok := r.(reference.Tagged); ok {
		tag = t.Tag()
	}
	return r.Name() + ":" + tag, pinned
}

// For returns the sources without images that were looked up for other platforms than one of several.
func (s *Sources) For(p graph.Platform, all []graph.Platform) *Sources {
	if len(all) < 2 {
		return s
	}
	has := func(ref string, p graph.Platform) bool {
		return slices.ContainsFunc(s.Images, func(i Image) bool { return i.Ref == ref && i.Platform != nil && same(*i.Platform, p) })
	}
	out := *s
	out.Images = slices.DeleteFunc(slices.Clone(s.Images), func(i Image) bool {
		everywhere := !slices.ContainsFunc(all, func(p graph.Platform) bool { return !has(i.Ref, p) })
		return everywhere && i.Platform != nil && !same(*i.Platform, p)
	})
	return &out
}

func same(a, b graph.Platform) bool { return a.OS == b.OS && a.Architecture == b.Architecture }

// material is one thing that was used, as documents have it.
type material struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}

func kind(local bool) string {
	if local {
		return "oci"
	}
	return "docker"
}

func (s *Sources) materials() []material {
	var out []material
	for _, i := range s.Images {
		out = append(out, material{image.PackageURL(kind(i.Local), i.Ref, i.Platform), digestSet(i.Digest)})
	}
	for _, b := range s.Blobs {
		out = append(out, material{image.PackageURL(kind(b.Local), b.Ref, nil, "ref_type", "blob"), digestSet(b.Digest)})
	}
	for _, g := range s.Git {
		out = append(out, material{g.URL, commitDigest(g.Commit)})
		scheme, ref, ok := strings.Cut(g.Bundle, "://")
		at := strings.LastIndexByte(ref, '@')
		if !ok || at < 0 {
			continue
		}
		d, err := digest.Parse(ref[at+1:])
		if err != nil {
			continue
		}
		u := image.PackageURL(kind(strings.HasPrefix(scheme, "oci-layout")), ref[:at], nil, "ref_type", "bundle", "vcs_url", g.URL)
		out = append(out, material{u, digestSet(d)})
	}
	for _, h := range s.HTTP {
		out = append(out, material{h.URL, digestSet(h.Digest)})
	}
	return out
}
