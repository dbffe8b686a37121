package pack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"io"
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
)

// layer finds or makes the blob of a layer, whose lock is held.
func (p *packing) layer(ctx context.Context, l *Layer) (archive.Blob, error) {
	b, err := p.blob(ctx, l)
	b.Annotations = nil
	if len(l.Annotations) > 0 {
		b.Annotations = maps.Clone(l.Annotations)
	}
	return b, err
}

func (p *packing) blob(ctx context.Context, l *Layer) (archive.Blob, error) {
	want := layer.Compression{Type: layer.Gzip}
	switch {
	case p.docker() && p.t.Compression == nil, p.t.Format == DockerLegacy && p.docker():
		want.Type = layer.Uncompressed
	case p.t.Compression != nil:
		want = *p.t.Compression
	case l.blob.Digest != "":
		return l.kept(l.blob.MediaType), nil
	}
	if t, ok := layer.TypeOf(l.blob.MediaType); ok && t == want.Type && want.Level == 0 {
		return l.kept(l.blob.MediaType), nil
	}
	if want.Type == layer.Uncompressed {
		return p.plain(ctx, l)
	}
	if b, ok := l.packed[want]; ok {
		return b, nil
	}
	if len(p.known) > 0 {
		if err := l.hash(ctx, nil); err != nil {
			return archive.Blob{}, err
		}
		if k := p.known[l.diffID]; k != nil && k != l {
			if t, _ := layer.TypeOf(k.blob.MediaType); t == want.Type {
				return k.kept(k.blob.MediaType), nil
			}
		}
	}
	b, err := p.compress(ctx, l, want)
	if err == nil {
		if l.packed == nil {
			l.packed = map[layer.Compression]archive.Blob{}
		}
		l.packed[want] = b
	}
	return b, err
}

// kept is the blob as it is, verified when it is copied.
func (l *Layer) kept(mediaType string) archive.Blob {
	d := image.Descriptor{MediaType: mediaType, Digest: l.blob.Digest, Size: l.blob.Size}
	return archive.Blob{Descriptor: d, Copy: func(ctx context.Context, w io.Writer) error {
		r, err := l.at.open(ctx, l.blob)
		if err != nil {
			return err
		}
		defer r.Close()
		return verified(w, r, d.Digest)
	}}
}

func verified(w io.Writer, r io.Reader, want graph.Digest) error {
	in := layer.NewDigestReader(r)
	defer in.Close()
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if got := in.Digest(); got != want {
		return diag.Errorf(diag.Invalid, "the bytes of %s have the digest %s", want, got)
	}
	return nil
}

// plain is the uncompressed tar of a layer: made where it belongs if that is a directory, else when somebody reads it.
func (p *packing) plain(ctx context.Context, l *Layer) (archive.Blob, error) {
	b := archive.Blob{Descriptor: image.Descriptor{MediaType: ocispec.MediaTypeImageLayer}}
	switch {
	case !l.virtual:
		if l.plain.at == nil {
			if err := p.w.readBlob(ctx, l); err != nil {
				return b, err
			}
		}
		b.Copy = func(_ context.Context, w io.Writer) error {
			return verified(w, io.NewSectionReader(l.plain.at, 0, l.plain.size), l.diffID)
		}
	case p.layout != nil && l.diffID == "":
		if err := p.spool(ctx, l); err != nil {
			return b, err
		}
		fallthrough
	default:
		if err := l.hash(ctx, nil); err != nil {
			return b, err
		}
		v := layer.Virtual{Entries: l.entries, DiffID: l.diffID, Options: l.opt}
		b.Copy = v.Write
	}
	b.Digest, b.Size = l.diffID, l.size
	return b, nil
}

// spool makes the tar of a virtual layer in the layout it goes to, hashing it on the way: one pass over its content.
func (p *packing) spool(ctx context.Context, l *Layer) error {
	f, err := p.layout.Create(blobDir + "/part")
	if err != nil {
		return diag.Errorf(diag.Denied, "cannot write to %s: %w", p.t.Path, err)
	}
	defer f.Abort()
	if err := l.hash(ctx, f); err != nil {
		return err
	}
	return f.CloseAs(l.diffID.Encoded())
}

// compress writes a layer's blob to a temporary file.
func (p *packing) compress(ctx context.Context, l *Layer, c layer.Compression) (archive.Blob, error) {
	var none archive.Blob
	mediaType, err := layer.MediaType(c.Type, false)
	if err != nil {
		return none, err
	}
	f, err := p.w.file()
	if err != nil {
		return none, err
	}
	h := sha256.New()
	out := bufio.NewWriterSize(f, 1<<20)
	z, err := layer.NewCompressor(io.MultiWriter(out, h), c)
	if err != nil {
		return none, err
	}
	if l.virtual {
		err = l.hash(ctx, z)
	} else {
		if l.plain.at == nil {
			err = p.w.readBlob(ctx, l)
		}
		if err == nil {
			_, err = io.Copy(z, io.NewSectionReader(l.plain.at, 0, l.plain.size))
		}
	}
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	if ferr := out.Flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return none, err
	}
	st, err := f.Stat()
	if err != nil {
		return none, err
	}
	d := image.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, h), Size: st.Size()}
	return archive.Blob{Descriptor: d, Copy: func(_ context.Context, w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(f, 0, d.Size))
		return err
	}}, nil
}
