// Package source brings what is not made by the build into the store: images, layouts and archives of images, blobs, git
// checkouts and downloads.
//
// Each source is pinned, then fetched. Pinning finds out what a name means now: it returns a digest that goes into the
// vertex's cache key. For an image that is the chain id of its layers (image-spec config.md), so that an image built here,
// pushed and pulled again, or relabelled, still hits. Fetching makes the layers. An [Env] says what a build may use; an
// [Images] is one build's view of images, in which a tag means one image until the build ends. A [Puller] is shared by all
// builds: no layer is downloaded or unpacked twice at the same time.
//
// A layer is downloaded, verified, kept as a blob, decompressed, verified again (its diff_id) and unpacked in one pass. It
// is in the store under its chain id only when both digests are right.
//
//	images := source.NewPuller(st).Images(source.Env{Store: st, Hold: st.Hold(), Registry: client})
//	img, err := images.Resolve(ctx, &graph.Image{Ref: "debian:12"}, graph.Platform{OS: "linux", Architecture: "amd64"})
//	key := img.Pin(0)                         // nothing but a manifest and a configuration was read so far
//	layers, err := images.Layers(ctx, img, 0, vertex)
//
// [Import] reads archives and layouts of every kind into the store as named images.
package source
