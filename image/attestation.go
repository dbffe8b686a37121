package image

import "github.com/strata-build/strata/graph"

// Attestation is a statement that goes out with an image: what it was made from, what is in it. The statement is a file of a
// tree, since steps make most of them.
type Attestation struct {
	PredicateType string // "https://spdx.dev/Document"; of a bundle: what its statements must be, "" = anything
	Root          graph.Edge
	Path          string    // of the predicate in the tree; exporters of files take its last part for a name
	Bundle        bool      // Path is a directory, and each of its files a whole in-toto statement
	Subjects      []Subject // what it is about; empty = the image
	InlineOnly    bool      // only for images, not for exporters of files
	Core          string    // the name, without extension, of the bill of materials of the image's own files, whose layers are added to it
}

// Subject is what a statement is about.
type Subject struct {
	Self    bool // the image, by its names, and by Name too if there is one
	Name    string
	Digests map[string]string // by algorithm: {"sha256": "…"}; of what is not the image
}
