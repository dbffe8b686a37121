// Package export hands what a build made to whoever wants it: the image store, a registry, an archive, a directory.
//
// A [Set] is the built result: one [Image] per platform, each a tree (a stack of layers) with the configuration around
// it. An [Exporter] writes a Set somewhere and returns a [Receipt], the digests and names that the client asks for.
// Each variant has its own file: image.go (the store), push.go (a registry), oci.go (OCI layout, as a directory or a
// tar), docker.go and legacy.go (the archives of docker load), local.go (plain files) and tar.go (a file system as tar).
//
// Layers are virtual until somebody needs their bytes. A [Packer] turns a layer into its diff_id (the digest of its
// uncompressed tar) or into a compressed blob, each at most once, in parallel, and finds again what earlier builds made;
// an engine may start it early. A configuration needs diff_ids only, so storing an image writes no blob, and an archive
// of uncompressed layers is streamed from the files without a copy in between.
//
//	out, err := export.New(export.Output{Type: "image", Attrs: map[string]string{"name": "app:1", "push": "true"}})
//	receipts, err := export.Run(ctx, env, set, []export.Exporter{out})
//	fmt.Println(receipts[0].Metadata["containerimage.digest"])
package export
