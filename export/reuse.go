package export

import (
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

// compressionName names a compression among the annotations of blobs: "zstd-9".
func compressionName(c layer.Compression) string {
	n := c.Type.String()
	if c.Level != 0 {
		n += "-" + strconv.Itoa(c.Level)
	}
	return n
}

// variants returns the known blobs of a layer, as it was pulled first.
func (p *Packer) variants(l Layer) []image.Descriptor {
	if l.pulled == nil {
		return p.store.Variants(l.DiffID)
	}
	return append([]image.Descriptor{*l.pulled}, p.store.Variants(l.DiffID)...)
}

// reuse finds a blob of the layer that fits the request: made by a packer in just this way, pulled in the wanted
// compression, or pulled in any unless one is forced. A pulled blob need not be here if it can be fetched.
func (p *Packer) reuse(l Layer, req Request) (image.Descriptor, bool) {
	var best image.Descriptor
	found := false
	all := p.variants(l)
	// The blob of the base image at hand comes first: another image may have the same layer in another form.
	if i := slices.IndexFunc(all, func(v image.Descriptor) bool { return v.Digest == req.Prefer }); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	for _, v := range all {
		as, ours := v.Annotations[madeAs]
		if here := p.has(v.Digest, req.Hold); !here && (ours || req.Fetch == nil) {
			continue
		}
		switch {
		case v.Digest == req.Prefer && !req.Force && !ours:
			return req.public(v), true
		case v.Digest == l.blob && !req.Force: // the very blob, even if others hold the same tar
			return req.public(v), true
		case ours && strings.TrimSuffix(as, ofPulled) == compressionName(req.Compression), !ours && typeOf(v.MediaType) == req.Compression.Type:
			return req.public(v), true
		case !ours && !req.Force && !found && typeOf(v.MediaType) != layer.Uncompressed:
			// As it was pulled. One that came uncompressed, as from an archive, is compressed for its first transfer.
			best, found = req.public(v), true
		case ours && req.Base && !req.Force && !found:
			best, found = req.public(v), true
		}
	}
	return best, found
}

// has reports whether a blob is in the store, and holds it.
func (p *Packer) has(d graph.Digest, hold *store.Hold) bool {
	if hold != nil {
		hold.Blobs(d)
	}
	_, ok := p.store.HasBlob(d)
	return ok
}

// before returns a request for a base image's layer with the compression of the image's blob, if that is one that a packer made
// and so can make again when it is gone.
func (p *Packer) before(l Layer, req Request) Request {
	if !req.Base || req.Force {
		return req
	}
	for _, v := range p.variants(l) {
		if as, ours := v.Annotations[madeAs]; ours && v.Digest == req.Prefer {
			if c, ok := compressionOf(strings.TrimSuffix(as, ofPulled)); ok {
				req.Compression, req.Base = c, false
			}
		}
	}
	return req
}

// compressionOf reads what compressionName writes.
func compressionOf(name string) (c layer.Compression, ok bool) {
	kind, level, leveled := strings.Cut(name, "-")
	var err error
	if c.Type, err = layer.ParseType(kind); err == nil && leveled {
		c.Level, err = strconv.Atoi(level)
	}
	return c, err == nil
}

// public returns a descriptor as it may leave the store.
func (r *Request) public(d image.Descriptor) image.Descriptor {
	out := image.Descriptor{MediaType: layerType(true, d.MediaType), Digest: d.Digest, Size: d.Size}
	if r.Nondist && nondist(d.MediaType) {
		out.MediaType, out.URLs = nondistType(d.MediaType), d.URLs
	}
	for k, v := range d.Annotations {
		if k == madeAs {
			continue
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[k] = v
	}
	return out
}
