package op

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tree"
)

// declared reads what the build says of its image: a generator's layers, image.json, or an OCI layout.
func (s *sealing) declared(ctx context.Context) ([]*part, *image.Sealed, error) {
	if s.op.Generator != "" {
		parts, err := s.generate(ctx)
		return parts, &image.Sealed{}, err
	}
	data, err := s.dir.read("output/image.json")
	if err == nil {
		return s.imageJSON(data)
	}
	if !isMissing(err) {
		return nil, nil, err
	}
	data, err = s.dir.read("output/index.json")
	if err == nil {
		return s.layout(data)
	}
	if !isMissing(err) {
		return nil, nil, err
	}
	return nil, nil, diag.Errorf(diag.NotFound, "nothing declared: expected output/image.json or output/index.json").
		WithHint("a step after OUTPUT has to write one of them below %s", s.op.Dir)
}

func (s *sealing) generate(ctx context.Context) ([]*part, error) {
	if s.Generate == nil {
		return nil, diag.Errorf(diag.Unsupported, "there is no generator %q", s.op.Generator)
	}
	view, err := s.in[2].Open(ctx)
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, view.Close)
	made, done, err := s.Generate(ctx, GeneratorRequest{Name: s.op.Generator, Dir: view.Dir, Options: s.op.Options, Max: s.op.Max, Epoch: s.op.Epoch, Known: s.known})
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, done)
	var parts []*part
	for i, m := range made {
		parts = append(parts, &part{
			where: fmt.Sprintf("%s layers[%d]", s.op.Generator, i), gen: m.Write,
			decl: image.OutputLayer{Name: m.Name, Key: m.Key, Annotations: m.Annotations},
		})
	}
	return parts, nil
}

// imageJSON reads output/image.json.
func (s *sealing) imageJSON(data []byte) ([]*part, *image.Sealed, error) {
	var im image.OutputImage
	if err := decode(data, &im); err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "image.json: %w", err)
	}
	if len(im.Layers) == 0 {
		return nil, nil, diag.Errorf(diag.Invalid, "image.json declares no layer")
	}
	var parts []*part
	named := map[string]bool{}
	for i, l := range im.Layers {
		p := &part{where: fmt.Sprintf("image.json layers[%d]", i), decl: l}
		if err := checkLayer(&l); err != nil {
			return nil, nil, p.fail(err)
		}
		parts = append(parts, p)
		named[l.Digest.String()] = true
		if rel, err := s.dir.rel(l.Tar); err == nil {
			named["sha256:"+strings.TrimPrefix(rel, "output/blobs/sha256/")] = true
		}
	}
	config, err := s.config(im.Config)
	if err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "image.json: config: %w", err)
	}
	s.unreferenced(named)
	return parts, &image.Sealed{Config: config, Annotations: im.Annotations}, nil
}

// checkLayer refuses what says nothing or several things.
func checkLayer(l *image.OutputLayer) error {
	n := 0
	for _, is := range []bool{l.Digest != "", l.Input != "", l.Tar != "", l.Dir != ""} {
		if is {
			n++
		}
	}
	if n != 1 {
		return diag.Errorf(diag.Invalid, "has %d of digest, input, tar and dir, and must have one", n)
	}
	if l.Prefix != "" && l.Dir == "" {
		return diag.Errorf(diag.Invalid, "a prefix goes with dir only")
	}
	if slices.Contains(strings.Split(l.Prefix, "/"), "..") {
		return diag.Errorf(diag.Invalid, "prefix %q: a path must not hold \"..\"", l.Prefix)
	}
	for _, d := range []graph.Digest{l.Digest, l.Input, l.DiffID} {
		if d == "" {
			continue
		}
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	return nil
}

func checkDigest(d graph.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return diag.Errorf(diag.Invalid, "%q is no digest: it must be sha256: and 64 hex digits", d)
	}
	return nil
}

// config reads an OCI configuration, or only its "config" object, which is told by its capital letters.
func (s *sealing) config(raw json.RawMessage) (*image.Config, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var keys map[string]json.RawMessage
	if err := strictjson.Unmarshal(raw, &keys); err != nil {
		return nil, diag.Errorf(diag.Invalid, "it must be an object")
	}
	var c image.Config
	inner := false
	for k := range keys {
		inner = inner || k != "" && k[0] >= 'A' && k[0] <= 'Z'
	}
	if inner {
		return &c, decode(raw, &c.Config)
	}
	if err := decode(raw, &c); err != nil {
		return nil, err
	}
	return &c, s.checkPlatform(&c)
}

// checkPlatform refuses an image for another platform than that which is built.
func (s *sealing) checkPlatform(c *image.Config) error {
	want := s.env.Platform
	for _, x := range []struct{ what, got, want string }{{"os", c.OS, want.OS}, {"architecture", c.Architecture, want.Architecture}, {"variant", c.Variant, want.Variant}} {
		if x.got != "" && x.want != "" && x.got != x.want {
			return diag.Errorf(diag.Invalid, "the %s is %s, but this is the build for %s/%s", x.what, x.got, want.OS, want.Architecture).
				WithHint("api.json says what platform is built")
		}
	}
	return nil
}

// unreferenced warns of blobs that nothing names.
func (s *sealing) unreferenced(named map[string]bool) {
	var extra []string
	for _, b := range s.dir.blobs() {
		if !named["sha256:"+b] {
			extra = append(extra, b)
		}
	}
	if len(extra) == 0 || s.env.Warn == nil {
		return
	}
	slices.Sort(extra)
	w := diag.Warning{Msg: fmt.Sprintf("OUTPUT: blobs that no layer names are dropped: %d", len(extra))}
	for _, b := range extra[:min(len(extra), 5)] {
		w.Detail = append(w.Detail, "output/blobs/sha256/"+b)
	}
	s.env.Warn(w)
}

// layout reads an OCI layout: index.json, a manifest for the platform, its configuration.
func (s *sealing) layout(data []byte) ([]*part, *image.Sealed, error) {
	l := &layout{s: s, named: map[string]bool{}}
	m, err := l.manifest(data)
	if err != nil {
		return nil, nil, err
	}
	raw, err := l.blob("config", m.Config.Digest)
	if err != nil {
		return nil, nil, err
	}
	var c image.Config
	if err := strictjson.Unmarshal(raw, &c); err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration %s: %w", m.Config.Digest, err)
	}
	if err := s.checkPlatform(&c); err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	if len(m.Layers) == 0 {
		return nil, nil, diag.Errorf(diag.Invalid, "index.json declares no layer")
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, nil, diag.Errorf(diag.Invalid, "the manifest has %d layers, the configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	rows := slices.DeleteFunc(slices.Clone(c.History), func(h image.History) bool { return h.EmptyLayer })
	var parts []*part
	for i, d := range m.Layers {
		p := &part{where: fmt.Sprintf("index.json layers[%d]", i)}
		p.decl = image.OutputLayer{Digest: d.Digest, DiffID: c.RootFS.DiffIDs[i], MediaType: d.MediaType, Annotations: d.Annotations, Name: d.Annotations[ocispec.AnnotationTitle]}
		if len(rows) == len(m.Layers) {
			p.decl.History = &rows[i]
		}
		if err := checkLayer(&p.decl); err != nil {
			return nil, nil, p.fail(err)
		}
		l.named[d.Digest.String()] = true
		parts = append(parts, p)
	}
	s.unreferenced(l.named)
	c.RootFS, c.History = image.RootFS{}, nil
	return parts, &image.Sealed{Config: &c, Annotations: m.Annotations}, nil
}

type layout struct {
	s     *sealing
	named map[string]bool // the blobs that something names
}

// blob reads a small blob and verifies it.
func (l *layout) blob(what string, d graph.Digest) ([]byte, error) {
	if err := checkDigest(d); err != nil {
		return nil, diag.Errorf(diag.Invalid, "index.json: the %s: %w", what, err)
	}
	l.named[d.String()] = true
	raw, err := l.s.dir.read("output/blobs/sha256/" + d.Encoded())
	if isMissing(err) {
		return nil, diag.Errorf(diag.NotFound, "index.json: the %s %s is not in output/blobs (%d blobs present)", what, d, len(l.s.dir.blobs()))
	}
	if err == nil && digest.FromBytes(raw) != d {
		err = diag.Errorf(diag.Invalid, "index.json: the %s %s hashes to %s", what, d, digest.FromBytes(raw))
	}
	return raw, err
}

func (l *layout) manifest(data []byte) (*ocispec.Manifest, error) {
	for depth := 0; depth < 3; depth++ {
		var idx ocispec.Index
		if err := strictjson.Unmarshal(data, &idx); err != nil {
			return nil, diag.Errorf(diag.Invalid, "index.json: %w", err)
		}
		d, err := l.choose(idx.Manifests)
		if err != nil {
			return nil, err
		}
		if data, err = l.blob("manifest", d.Digest); err != nil {
			return nil, err
		}
		if d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == image.DockerManifestList {
			continue
		}
		var m ocispec.Manifest
		if err := strictjson.Unmarshal(data, &m); err != nil {
			return nil, diag.Errorf(diag.Invalid, "the manifest %s: %w", d.Digest, err)
		}
		return &m, nil
	}
	return nil, diag.Errorf(diag.Invalid, "index.json: indexes are nested too deep")
}

// choose finds the manifest for the platform; one that names none is for any.
func (l *layout) choose(all []ocispec.Descriptor) (ocispec.Descriptor, error) {
	want := l.s.env.Platform
	var have []string
	for _, d := range all {
		p := d.Platform
		if p == nil || p.OS == want.OS && p.Architecture == want.Architecture && (p.Variant == "" || want.Variant == "" || p.Variant == want.Variant) {
			return d, nil
		}
		have = append(have, p.OS+"/"+p.Architecture)
	}
	return ocispec.Descriptor{}, diag.Errorf(diag.Invalid, "index.json has no manifest for %s/%s (there are %d: %s)", want.OS, want.Architecture, len(have), strings.Join(have, ", "))
}

// Sealed reads the record of a Layers vertex from its second output.
func Sealed(ctx context.Context, t tree.Tree) (*image.Sealed, error) {
	st, ok := t.(*tree.Stack)
	if !ok {
		return nil, diag.Errorf(diag.Internal, "%T holds no record of layers", t)
	}
	files, err := st.Files()
	if err != nil {
		return nil, err
	}
	data, err := files.ReadFile(ctx, image.SealedPath, image.MaxSealed)
	if err != nil {
		return nil, err
	}
	var sealed image.Sealed
	if err := strictjson.Unmarshal(data, &sealed); err != nil {
		return nil, diag.Errorf(diag.Internal, "the record of the layers: %w", err)
	}
	return &sealed, nil
}
