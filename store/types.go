package store

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// LayerID names the directory snapshots/N: one overlay layer, immutable once committed. Numbers start at 1 and are
// never used again, so that nothing that outlives a layer can come to mean another one.
type LayerID uint64

func (id LayerID) String() string { return strconv.FormatUint(uint64(id), 10) }

// LayerInfo describes a committed layer.
type LayerInfo struct {
	ID      LayerID
	DiffID  graph.Digest // digest of the layer's uncompressed tar; "" until it is known
	Size    int64        // bytes on disk, each file counted where it was made
	TarSize int64        // bytes of the uncompressed tar; 0 until DiffID is known
	Files   int64        // inodes
	Blob    graph.Digest // blob that it was unpacked from, which the files alone may not give again; "" = made here
	Created time.Time    // with a resolution of 1 s
	Owner   string       // see WithOwner
}

// Result is what a vertex made.
type Result struct {
	Outputs [][]LayerID     // one stack of layers per output, bottom first; an empty stack is the empty tree
	Label   string          // for people, such as "RUN make"
	Cost    time.Duration   // what it took to make, and so what a hit saves
	Created time.Time       // with a resolution of 1 s
	Extra   json.RawMessage // the op's own facts; the store does not look into it
	Blobs   []graph.Digest  // that the result needs: kept as long as it is, and without one of them it is a miss
	Origins []string        // caches elsewhere that it came from; none = it was made here
	Owner   string          // whose build made it; see WithOwner
}

// Image is a named image: a root of garbage collection.
type Image struct {
	Name      string
	Updated   time.Time
	Pulled    bool              `json:",omitempty"` // for a build, which named it: it is collected when there is no room
	Made      bool              // somebody here has given it the name; else it was pulled, and its registry says who may have it
	Index     *image.Descriptor // the image index, if there is one as a blob
	Platforms []PlatformImage
}

// PlatformImage is an image for one platform.
type PlatformImage struct {
	Platform    graph.Platform
	Config      graph.Digest       // blob
	Layers      []LayerID          // bottom first; empty if the image is not unpacked
	DiffIDs     []graph.Digest     // bottom first
	Blobs       []image.Descriptor // the layers as pulled, bottom first; empty if they are not kept
	Manifest    *image.Descriptor  // nil if there is none as a blob
	Annotations map[string]string
	Proof       *image.Descriptor  // the manifest of what is stated about the image; nil if nothing is
	Proofs      []image.Descriptor // blobs that Proof names
}

// ID names an image without a name: the digest of its index, or of its configuration.
func (im *Image) ID() graph.Digest {
	switch {
	case im.Index != nil:
		return im.Index.Digest
	case len(im.Platforms) > 0:
		return im.Platforms[0].Config
	}
	return ""
}

// Dangling reports whether nobody has given the image a name, or its name went to another image: it is stored under a digest.
// Such images are collected when they are old, or when there is no room.
func (im *Image) Dangling() bool { return dangling(im.Name) }

func dangling(name string) bool { return graph.Digest(name).Validate() == nil }

// blobs calls f for every blob that the image names.
func (im *Image) blobs(f func(graph.Digest)) {
	if im.Index != nil {
		f(im.Index.Digest)
	}
	for _, p := range im.Platforms {
		if p.Config != "" {
			f(p.Config)
		}
		if p.Manifest != nil {
			f(p.Manifest.Digest)
		}
		if p.Proof != nil {
			f(p.Proof.Digest)
		}
		for _, b := range slices.Concat(p.Blobs, p.Proofs) {
			f(b.Digest)
		}
	}
}
