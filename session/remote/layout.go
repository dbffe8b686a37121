package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/strictjson"
)

var _ session.Layouts = (*Session)(nil)

// maxDocument bounds a manifest or an index, in bytes.
const maxDocument = 4 << 20

// Layout brings an image of the client's content store here, as an OCI layout: of an index all manifests, but only the layers
// of the platform. Blobs that an earlier build brought are still there. The reference must have a digest.
func (s *Session) Layout(ctx context.Context, op *graph.OCILayout, p graph.Platform) (session.Dir, error) {
	_, name, _ := strings.Cut(op.Ref, "@")
	root := digest.Digest(name)
	if err := root.Validate(); err != nil || root.Algorithm() != digest.SHA256 {
		return session.Dir{}, diag.Errorf(diag.Invalid, "%s: an image of a client's layout needs a digest", op.Ref)
	}
	c, err := s.from(ctx, &graph.Local{Session: op.Session})
	if err != nil {
		return session.Dir{}, err
	}
	s.layoutMu.Lock()
	defer s.layoutMu.Unlock()
	f, err := s.layoutSlot(c, op.Store)
	if err != nil {
		return session.Dir{}, err
	}
	size, err := f.image(ctx, root, p, true)
	if err != nil {
		return session.Dir{}, err
	}
	index := ocispec.Index{Manifests: []ocispec.Descriptor{{MediaType: f.mediaType, Digest: root, Size: size}}}
	index.SchemaVersion = 2
	raw, err := json.Marshal(index)
	if err != nil {
		return session.Dir{}, err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(f.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600),
		os.WriteFile(filepath.Join(f.dir, ocispec.ImageIndexFile), raw, 0o600))
	return session.Dir{Path: f.dir, Key: "session/" + f.name}, err
}

// Blob implements session.Layouts. The blob is kept, as those of images are.
func (s *Session) Blob(ctx context.Context, op *graph.Blob, d graph.Digest) (io.ReadCloser, error) {
	c, err := s.from(ctx, &graph.Local{Session: op.Session})
	if err != nil {
		return nil, err
	}
	s.layoutMu.Lock()
	defer s.layoutMu.Unlock()
	f, err := s.layoutSlot(c, op.Store)
	if err != nil {
		return nil, err
	}
	if err := f.blob(ctx, d, math.MaxInt64); err != nil {
		return nil, err
	}
	return os.Open(f.path(d))
}

// layoutFetch fills one layout.
type layoutFetch struct {
	c         *client
	store     string // the client's name of its content store
	name, dir string
	mediaType string // of the document that was read last at the top
}

// layoutSlot returns the directory of a client's store in this build.
func (s *Session) layoutSlot(c *client, store string) (*layoutFetch, error) {
	key, err := json.Marshal([]string{"layout", s.peer.Identity, store})
	if err != nil {
		return nil, err
	}
	f := s.layouts[string(key)+c.id]
	if f != nil {
		return f, nil
	}
	sl, err := s.m.slots.take(string(key), "layout")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.held = append(s.held, sl)
	s.mu.Unlock()
	f = &layoutFetch{c: c, store: store, name: sl.name, dir: sl.dir()}
	if s.layouts == nil {
		s.layouts = map[string]*layoutFetch{}
	}
	s.layouts[string(key)+c.id] = f
	return f, errors.Join(os.MkdirAll(filepath.Join(f.dir, "blobs/sha256"), 0o700), sl.filled("layout"))
}

// document is what a manifest and an index have in common.
type document struct {
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// image fetches a manifest or an index with what it names, and returns its size.
func (f *layoutFetch) image(ctx context.Context, d digest.Digest, p graph.Platform, top bool) (int64, error) {
	if err := f.blob(ctx, d, maxDocument); err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(f.path(d))
	if err != nil {
		return 0, err
	}
	var doc document
	if err := strictjson.Unmarshal(raw, &doc); err != nil {
		return 0, diag.Errorf(diag.Invalid, "%s is neither a manifest nor an index: %w", d, err)
	}
	if top {
		f.mediaType = doc.MediaType
		if f.mediaType == "" && len(doc.Manifests) > 0 {
			f.mediaType = ocispec.MediaTypeImageIndex
		} else if f.mediaType == "" {
			f.mediaType = ocispec.MediaTypeImageManifest
		}
	}
	for _, m := range doc.Manifests {
		if !top {
			return 0, diag.Errorf(diag.Unsupported, "%s: an index in an index is not read", d)
		}
		if m.Platform != nil && (m.Platform.OS != p.OS || m.Platform.Architecture != p.Architecture) {
			continue
		}
		if _, err := f.image(ctx, m.Digest, p, false); err != nil {
			return 0, err
		}
	}
	if doc.Config != nil {
		doc.Layers = append(doc.Layers, *doc.Config)
	}
	for _, l := range doc.Layers {
		if err := f.blob(ctx, l.Digest, l.Size); err != nil {
			return 0, err
		}
	}
	return int64(len(raw)), nil
}

func (f *layoutFetch) path(d digest.Digest) string {
	return filepath.Join(f.dir, "blobs/sha256", d.Encoded())
}

// blob fetches a blob of at most limit bytes, unless it is there.
func (f *layoutFetch) blob(ctx context.Context, d digest.Digest, limit int64) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return diag.Errorf(diag.Invalid, "%.100q is no sha256 digest", d)
	}
	if _, err := os.Stat(f.path(d)); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Join(f.dir, "blobs"), "part-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	sum := d.Verifier()
	if err := f.read(ctx, d, limit, io.MultiWriter(tmp, sum)); err != nil {
		return err
	}
	if !sum.Verified() {
		return diag.Errorf(diag.Invalid, "the client sent something else than %s", d)
	}
	return errors.Join(tmp.Close(), os.Rename(tmp.Name(), f.path(d)))
}

// read streams a blob over containerd's content API.
func (f *layoutFetch) read(ctx context.Context, d digest.Digest, limit int64, w io.Writer) error {
	ctx, done := f.c.call(ctx, map[string][]string{"buildkit-attachable-store-id": {"oci:" + f.store}})
	defer done()
	stream, err := f.c.cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/containerd.services.content.v1.Content/Read")
	if err == nil {
		err = errors.Join(stream.SendMsg(text(d.String())), stream.CloseSend())
	}
	if err != nil {
		return failed(ctx, err, "the layout %q", f.store)
	}
	for got := int64(0); ; {
		var m message
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if status.Code(err) == codes.Unknown || status.Code(err) == codes.Unimplemented {
			return diag.Errorf(diag.NotFound, "the client has no layout %q: %s", f.store, status.Convert(err).Message())
		} else if err != nil {
			return failed(ctx, err, "the layout %q", f.store)
		}
		b, err := m.field(protowire.Number(2))
		if err != nil {
			return err
		}
		if got += int64(len(b)); got > limit {
			return diag.Errorf(diag.Exhausted, "%s is larger than the %d bytes that it should have", d, limit)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}
