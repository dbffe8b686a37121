package pack

import (
	"cmp"
	"context"
	"os"
	"runtime"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// Options say what a workspace may use.
type Options struct {
	Registry *registry.Client // nil: registries cannot be reached
	Temp     string           // directory for temporary files; "" is the system's
	Schema1  bool             // read manifests of schema 1, which nobody can verify against a configuration
	// Store writes the image of a store as an OCI archive, for names that begin with "store:"; nil: there is no store.
	Store func(ctx context.Context, name string, w *os.File) error
}

// Workspace reads and writes images. It keeps what it opened, and temporary files, until Close. Its methods may be called
// from several goroutines.
type Workspace struct {
	opt   Options
	mu    sync.Mutex
	temp  string
	close []func() error

	checks  []*check
	slots   chan struct{} // of checks: how many blobs are hashed at once
	closing chan struct{} // closed by Close
}

// New makes a workspace.
func New(opt Options) *Workspace {
	return &Workspace{opt: opt, slots: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), closing: make(chan struct{})}
}

// Close removes the temporary files and closes what images were read from.
func (w *Workspace) Close() error {
	w.endChecks()
	w.mu.Lock()
	defer w.mu.Unlock()
	var first error
	for _, f := range w.close {
		if err := f(); err != nil && first == nil {
			first = err
		}
	}
	w.close = nil
	if w.temp != "" {
		if err := os.RemoveAll(w.temp); err != nil && first == nil {
			first = err
		}
		w.temp = ""
	}
	return first
}

func (w *Workspace) onClose(f func() error) {
	w.mu.Lock()
	w.close = append(w.close, f)
	w.mu.Unlock()
}

// file makes a temporary file, which Close removes.
func (w *Workspace) file() (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.temp == "" {
		dir, err := os.MkdirTemp(w.opt.Temp, "strata-")
		if err != nil {
			return nil, diag.Errorf(diag.Unavailable, "making a temporary directory: %w", err)
		}
		w.temp = dir
	}
	f, err := os.CreateTemp(w.temp, "layer-")
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "making a temporary file: %w", err)
	}
	w.close = append(w.close, f.Close)
	return f, nil
}

// tempDir is the archive's way to get room.
func (w *Workspace) tempDir(string) (string, func(), error) {
	dir, err := os.MkdirTemp(w.opt.Temp, "strata-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}

// Source is where an image was found: one image, or one for each of several platforms.
type Source struct {
	Name  string
	Index *archive.Blob // the index that lists the platforms, if there is one
	// Attestations is how many manifests of the index are about others, such as SBOMs and provenance.
	Attestations int

	w     *Workspace
	list  []candidate
	exact *reading // how the documents are read as they are; nil: there are none
	found image.Descriptor
}

type candidate struct {
	platform graph.Platform
	load     func(ctx context.Context) (*Image, error)
}

// transports are the prefixes of containers-transports(5) that name files.
var transports = []string{"oci:", "oci-archive:", "docker-archive:", "dir:"}

// Open finds an image. A name is one of
//
//	app.tar  layout/  ./x.tar.gz      a file or a directory in any format that package archive reads
//	app.tar:NAME  layout:TAG          one image of several in it; also oci:PATH:TAG, docker-archive:PATH:NAME, dir:PATH, …
//	debian:12  docker://debian:12     a registry's image
//	store:NAME                        an image of the store, if the workspace has one
//
// What exists as a file is a file; NAME may be a digest after "@".
func (w *Workspace) Open(ctx context.Context, name string) (*Source, error) {
	if rest, ok := strings.CutPrefix(name, "store:"); ok {
		return w.fromStore(ctx, rest)
	}
	if rest, ok := strings.CutPrefix(name, "docker://"); ok {
		return w.fromRegistry(ctx, rest)
	}
	for _, t := range transports {
		if rest, ok := strings.CutPrefix(name, t); ok {
			path, ref, ok := archive.SplitPath(rest)
			if !ok {
				return nil, diag.Errorf(diag.NotFound, "%s: there is no file %s", name, rest)
			}
			return w.fromFiles(ctx, path, ref)
		}
	}
	if path, ref, ok := archive.SplitPath(name); ok {
		return w.fromFiles(ctx, path, ref)
	}
	if looksLikeFile(name) {
		return nil, diag.Errorf(diag.NotFound, "there is no file %s", name).WithHint("if an image of a registry is meant, write docker://%s", name)
	}
	return w.fromRegistry(ctx, name)
}

// looksLikeFile reports whether a name is meant as a path rather than as an image of a registry.
func looksLikeFile(name string) bool {
	for _, p := range []string{"/", "./", "../"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	for _, s := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".oci"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

func (w *Workspace) fromStore(ctx context.Context, name string) (*Source, error) {
	if w.opt.Store == nil {
		return nil, diag.Errorf(diag.NotFound, "store:%s: there is no store here", name)
	}
	f, err := w.file()
	if err != nil {
		return nil, err
	}
	if err := w.opt.Store(ctx, name, f); err != nil {
		return nil, err
	}
	src, err := w.fromFiles(ctx, f.Name(), "")
	if err == nil {
		src.Name = name
	}
	return src, err
}

func (w *Workspace) fromFiles(ctx context.Context, path, ref string) (*Source, error) {
	a, err := archive.Open(ctx, path, nil, w.tempDir)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
	}
	w.onClose(a.Close)
	all, err := a.Entries()
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
	}
	e, err := archive.Pick(all, ref)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
	}
	src := &Source{Name: path, w: w}
	if len(e.Names) > 0 {
		src.Name = e.Names[0]
	}
	if e.Docker != nil {
		c, err := a.ReadDocker(ctx, e)
		if err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
		}
		src.list = []candidate{{c.Config.Platform(), func(context.Context) (*Image, error) {
			im := &Image{Name: src.Name, Platform: c.Config.Platform(), Config: c.Config, rawConfig: c.Raw}
			return im, im.addLayers(c.Blobs, &place{file: c.BlobFile})
		}}}
		return src, nil
	}
	r := reading{src: src, at: &place{file: a.BlobFile}, document: func(_ context.Context, d image.Descriptor) ([]byte, error) { return a.Document(d) }}
	return src, r.top(ctx, *e.Desc)
}

func (w *Workspace) fromRegistry(ctx context.Context, name string) (*Source, error) {
	ref, err := registry.ParseRef(name)
	if err != nil {
		return nil, err
	}
	if w.opt.Registry == nil {
		return nil, diag.Errorf(diag.NotFound, "%s: there is no such file, and no registry to ask", name)
	}
	c := w.opt.Registry
	raw, top, err := c.Document(ctx, ref, image.Descriptor{})
	if err != nil {
		return nil, err
	}
	src := &Source{Name: ref.String(), w: w}
	if isSchema1(raw) {
		if !w.opt.Schema1 {
			return nil, diag.Errorf(diag.Unsupported, "%s has a manifest of schema 1, which was given up in 2019", ref).
				WithHint("read it nevertheless with --schema1, or build the image again")
		}
		src.list = []candidate{{graph.Platform{OS: "linux"}, func(ctx context.Context) (*Image, error) { return w.schema1(ctx, ref, raw) }}}
		return src, nil
	}
	r := reading{src: src, at: &place{registry: c, ref: ref}, document: func(ctx context.Context, d image.Descriptor) ([]byte, error) {
		if d.Digest == top.Digest {
			return raw, nil
		}
		return c.Manifest(ctx, ref, d)
	}}
	return src, r.top(ctx, top)
}

// reading reads the documents of an image.
type reading struct {
	src      *Source
	at       *place
	document func(context.Context, image.Descriptor) ([]byte, error)
}

// top reads what a name means: an index or a manifest.
func (r reading) top(ctx context.Context, d image.Descriptor) error {
	raw, err := r.document(ctx, d)
	if err != nil {
		return err
	}
	doc, err := registry.Decode(raw, d.MediaType)
	if err != nil {
		return diag.Errorf(diag.KindOf(err), "%s: %w", r.src.Name, err)
	}
	d.MediaType = doc.MediaType
	r.src.exact, r.src.found = &r, d
	if doc.Manifest != nil {
		im, err := r.image(ctx, d, raw, doc.Manifest)
		if err != nil && registry.IsConfig(doc.Manifest.Config.MediaType) {
			return err
		}
		if err != nil { // an artifact, which can be copied but is not an image
			err = diag.Errorf(diag.Unsupported, "%s is an artifact of type %s, not an image", r.src.Name, cmp.Or(doc.Manifest.ArtifactType, doc.Manifest.Config.MediaType))
			r.src.list = []candidate{{thisMachine(), func(context.Context) (*Image, error) { return nil, err }}}
			return nil
		}
		if im.manifest == nil { // its layers were not in order: the document is wrong
			r.src.exact = nil
		}
		r.src.list = []candidate{{im.Platform, func(context.Context) (*Image, error) { return im, nil }}}
		return nil
	}
	x := archive.Bytes(doc.MediaType, raw)
	r.src.Index = &x
	for _, m := range doc.Index.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" { // attestations, which are about other bytes than will be written
			r.src.Attestations++
			continue
		}
		r.src.list = append(r.src.list, candidate{image.PlatformOf(m.Platform), func(ctx context.Context) (*Image, error) {
			raw, err := r.document(ctx, m)
			if err != nil {
				return nil, err
			}
			doc, err := registry.Decode(raw, m.MediaType)
			if err != nil {
				return nil, err
			}
			if doc.Manifest == nil {
				return nil, diag.Errorf(diag.Unsupported, "%s is an index of indexes", r.src.Name)
			}
			return r.image(ctx, m, raw, doc.Manifest)
		}})
	}
	return nil
}

func (r reading) image(ctx context.Context, d image.Descriptor, raw []byte, m *ocispec.Manifest) (*Image, error) {
	if kind := registry.ArtifactType(m); kind != "" {
		return nil, diag.Errorf(diag.Unsupported, "%s is an artifact of type %s, not an image", r.src.Name, kind)
	}
	conf, err := r.at.read(ctx, m.Config, registry.MaxConfig)
	if err != nil {
		return nil, err
	}
	c, err := registry.DecodeConfig(conf)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return nil, diag.Errorf(diag.Invalid, "%s: the manifest lists %d layers, the configuration %d", r.src.Name, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	im := &Image{Name: r.src.Name, Platform: c.Platform(), Config: c, rawConfig: conf, Annotations: m.Annotations}
	layers := m.Layers
	if sorted := archive.Unshuffle(layers, c.RootFS.DiffIDs); sorted != nil {
		layers = sorted
	} else {
		im.manifest = &archive.Blob{Descriptor: image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw))}, Data: raw}
		if im.manifest.MediaType == "" {
			im.manifest.MediaType = m.MediaType
		}
	}
	return im, im.addLayers(layers, r.at)
}

// Platforms lists the platforms of the image.
func (s *Source) Platforms() []graph.Platform {
	var out []graph.Platform
	for _, c := range s.list {
		out = append(out, c.platform)
	}
	return out
}

// Image reads the image for a platform; the zero platform is this machine's, or the only one there is. A platform that is
// missing is diag.NotFound, with those there are.
func (s *Source) Image(ctx context.Context, p graph.Platform) (*Image, error) {
	asked := p.OS != ""
	if !asked {
		p = thisMachine()
	}
	if i, ok := image.ChoosePlatform(p, s.Platforms()); ok {
		return s.list[i].load(ctx)
	}
	if len(s.list) == 1 && !asked {
		return s.list[0].load(ctx)
	}
	return nil, image.NoPlatform(s.Name, p, s.Platforms())
}

// Images reads the images of all platforms.
func (s *Source) Images(ctx context.Context) ([]*Image, error) {
	var out []*Image
	for _, c := range s.list {
		im, err := c.load(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, im)
	}
	return out, nil
}

// Chosen reads the image for one platform, or those of all platforms for the zero one.
func (s *Source) Chosen(ctx context.Context, p graph.Platform) ([]*Image, error) {
	if p.OS == "" {
		return s.Images(ctx)
	}
	im, err := s.Image(ctx, p)
	return []*Image{im}, err
}

// Image is Open followed by Source.Image.
func (w *Workspace) Image(ctx context.Context, name string, p graph.Platform) (*Image, error) {
	s, err := w.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.Image(ctx, p)
}
