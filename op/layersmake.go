package op

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// read makes or finds the layer of a part, as far as that can be done without the layers below.
func (s *sealing) read(ctx context.Context, p *part) error {
	switch {
	case p.gen != nil:
		return s.generated(ctx, p)
	case p.decl.Dir != "":
		return s.directory(ctx, p)
	case p.decl.Tar != "":
		rel, err := s.dir.rel(p.decl.Tar)
		if err != nil {
			return err
		}
		f, err := s.dir.open(rel, false)
		if isMissing(err) {
			return diag.Errorf(diag.NotFound, "there is no file %s", rel)
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return s.given(ctx, p, f, "")
	case p.decl.Input != "":
		return s.reused(p, p.decl.Input)
	}
	f, err := s.dir.open("output/blobs/sha256/"+p.decl.Digest.Encoded(), false)
	if isMissing(err) {
		return s.reused(p, p.decl.Digest)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return s.given(ctx, p, f, p.decl.Digest)
}

// verified names what is known of a blob that was read and checked before: its diff_id.
func (s *sealing) verified(blob graph.Digest) graph.Digest {
	return digest.FromString("strata: the layer that the blob " + string(blob) + " holds, for " + s.env.Tenant)
}

// given is for a blob that the build made. Its bytes are kept, so that the image has exactly this blob.
func (s *sealing) given(ctx context.Context, p *part, f *os.File, want graph.Digest) error {
	d, size, err := s.keep(ctx, f, want)
	if err != nil {
		return err
	}
	s.hold.Blobs(d)
	p.blob = image.Descriptor{Digest: d, Size: size}
	if diff, err := s.Store.Memo(s.verified(d)); err == nil {
		for _, v := range s.Store.Variants(diff) {
			if v.Digest == d {
				p.blob, p.info.DiffID = v, diff
			}
		}
		if p.info.DiffID != "" && s.findShared(p) {
			return checkDeclared(p)
		}
	}
	b, err := s.Store.OpenBlob(ctx, d)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := s.unpack(ctx, p, b.Reader(), true); err != nil {
		return err
	}
	p.info.Blob = d
	if err := checkDeclared(p); err != nil {
		return err
	}
	if s.findShared(p) {
		p.draft.Discard()
		p.draft = nil
	}
	return s.Store.Update(ctx, func(b *store.Batch) error { b.Memo(s.verified(d), p.info.DiffID); return nil })
}

// checkDeclared compares what was computed with what the build says.
func checkDeclared(p *part) error {
	if w := p.decl.DiffID; w != "" && w != p.info.DiffID {
		return diag.Errorf(diag.Invalid, "the diff_id is %s, not %s as declared", p.info.DiffID, w)
	}
	want, ok := layer.TypeOf(p.decl.MediaType)
	got, _ := layer.TypeOf(p.blob.MediaType)
	if p.decl.MediaType != "" && (!ok || want != got) {
		return diag.Errorf(diag.Invalid, "the blob is %s, not of the declared type %s", got, p.decl.MediaType)
	}
	return nil
}

// keep hashes a file of the build and keeps it as a blob.
func (s *sealing) keep(ctx context.Context, f *os.File, want graph.Digest) (graph.Digest, int64, error) {
	h := sha256.New()
	var w io.Writer = h
	var blob *store.BlobWriter
	if _, ok := s.hold.HasBlob(want); want == "" || !ok {
		var err error
		if blob, err = s.hold.NewBlob(ctx, ""); err != nil {
			return "", 0, err
		}
		defer blob.Abort()
		w = io.MultiWriter(h, blob)
	}
	n, err := io.CopyBuffer(w, contextReader{ctx, f}, make([]byte, 1<<20))
	if err != nil {
		return "", 0, err
	}
	d := digest.NewDigest(digest.SHA256, h)
	if want != "" && d != want {
		return "", 0, diag.Errorf(diag.Invalid, "%s hashes to %s", want, d)
	}
	if blob != nil {
		_, _, err = blob.Commit(ctx)
	}
	return d, n, err
}

// contextReader stops reading when the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// unpack reads a blob into a draft. Strict is for what the build made; what was an image's layer before is taken as it is.
func (s *sealing) unpack(ctx context.Context, p *part, r io.Reader, strict bool) error {
	plain, kind, err := layer.DecompressLimited(r, layer.Limits{MaxBytes: maxUnpacked, MaxRatio: maxRatio, RatioAbove: ratioAbove})
	if err != nil {
		return err
	}
	defer plain.Close()
	mediaType, err := layer.MediaType(kind, false)
	if err != nil {
		return diag.Errorf(diag.Unsupported, "a layer is gzip, zstd or uncompressed, not %s", kind)
	}
	if p.blob.MediaType == "" {
		p.blob.MediaType = mediaType
	}
	if p.draft, err = s.hold.NewLayer(ctx); err != nil {
		return err
	}
	tar := layer.NewDigestReader(plain)
	defer tar.Close()
	p.applied, err = layer.Apply(ctx, tar, p.draft.Dir, layer.ApplyOptions{Strict: strict, MaxEntries: maxEntries, MaxBytes: maxUnpacked})
	if err != nil {
		return err
	}
	a := p.applied
	implied := a.ImpliedDirs
	p.alone = strict && (len(implied) == 0 || len(implied) == 1 && implied[0] == ".") && len(a.Whiteouts)+len(a.Opaque) == 0
	p.info = store.LayerInfo{DiffID: tar.Digest(), Size: a.Bytes, TarSize: a.TarSize, Files: a.Entries, Created: time.Now(), Blob: p.blob.Digest}
	return nil
}

// findOverlaps tells the parts whose directories no other part reads.
func (s *sealing) findOverlaps(parts []*part) error {
	rels := make([]string, len(parts))
	for i, p := range parts {
		if p.decl.Dir == "" {
			continue
		}
		rel, err := s.dir.rel(p.decl.Dir)
		if err != nil {
			return p.fail(err)
		}
		rels[i] = rel + "/"
	}
	for i, p := range parts {
		p.only = true
		for j, other := range rels {
			if j != i && other != "" && (strings.HasPrefix(other, rels[i]) || strings.HasPrefix(rels[i], other)) {
				p.only = false
			}
		}
	}
	return nil
}

// directory makes a layer of a directory. Its files are linked, not copied, unless another layer has them too: no tree shows
// the build's output and the image together.
func (s *sealing) directory(ctx context.Context, p *part) error {
	rel, err := s.dir.rel(p.decl.Dir)
	if err != nil {
		return err
	}
	f, err := s.dir.open(rel, true)
	if isMissing(err) {
		return diag.Errorf(diag.NotFound, "there is no directory %s", rel)
	}
	if err != nil {
		return err
	}
	f.Close()
	from, ok := s.in[0].(*tree.Stack)
	if !ok {
		return diag.Errorf(diag.Internal, "%T is no directory of the store", s.in[0])
	}
	if p.draft, err = s.hold.NewLayer(ctx); err != nil {
		return err
	}
	if err := s.fill(ctx, p, from, rel); err != nil {
		return err
	}
	return s.ownLayer(ctx, p)
}

func (s *sealing) fill(ctx context.Context, p *part, from *tree.Stack, rel string) error {
	files, err := from.Files()
	if err != nil {
		return err
	}
	matches, err := files.Pick(ctx, graph.Select{Path: "/" + rel}, false)
	if err != nil {
		return err
	}
	nothing := tree.NewStack(s.Store, nil)
	defer nothing.Release()
	u, err := tree.NewUpper(nothing, p.draft)
	if err != nil {
		return err
	}
	defer u.Close()
	when := time.Unix(0, 0)
	if s.op.Epoch != nil {
		when = *s.op.Epoch
	}
	dest := strings.TrimPrefix(path.Clean("/"+p.decl.Prefix), "/")
	if dest != "" {
		if err := u.MkdirAll(path.Dir("/"+dest), tree.Meta{Mode: 0o755, Time: &when}); err != nil {
			return err
		}
	}
	if err := u.Copy(ctx, files, &matches[0], dest, tree.CopyOptions{Sockets: true, Moved: p.only}); err != nil {
		return err
	}
	if p.info, err = u.Finish(ctx); err != nil {
		return err
	}
	if err := os.Chmod(p.draft.Dir, 0o755); err != nil { // the root is every layer's
		return err
	}
	if s.op.Epoch == nil {
		return nil
	}
	return tree.Clamp(p.draft.Dir, *s.op.Epoch)
}

// ownLayer computes the diff_id of a layer that was made here, whose tar is that of its files.
func (s *sealing) ownLayer(ctx context.Context, p *part) error {
	d, stats, err := layer.DiffID(ctx, p.draft.Dir, layer.TarOptions{})
	if err != nil {
		return err
	}
	p.info.DiffID, p.info.TarSize, p.info.Files = d, stats.Size, stats.Entries
	p.alone, p.blob = true, image.Descriptor{}
	if s.findShared(p) {
		p.draft.Discard()
		p.draft = nil
	}
	return checkDeclared(p)
}

// generated takes a layer of a generator.
func (s *sealing) generated(ctx context.Context, p *part) error {
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(p.gen(ctx, w)) }()
	if err := s.unpack(ctx, p, r, true); err != nil {
		return err
	}
	if len(p.applied.Whiteouts)+len(p.applied.Opaque) > 0 || !p.alone {
		return diag.Errorf(diag.Internal, "the generator made a layer that depends on others")
	}
	p.applied, p.info.Blob = nil, ""
	return s.ownLayer(ctx, p)
}
