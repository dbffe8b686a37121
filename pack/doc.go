// Package pack works with images outside of any store: it reads, changes and writes them without root, a daemon or a state
// directory.
//
// A [Workspace] opens images by name, from files in every format of package archive and from registries, and keeps
// temporary files until it is closed. An [Image] is of one platform; a [Layer] of it is a blob somewhere, a tar in a file, or
// a virtual layer: a list of entries, whose tar is made when it is read, and not at all if the registry that it goes to has
// it. What changes images ([Assemble], [Rebase], [Workspace.Relayer], …) returns new ones; [Workspace.Write] writes them.
//
//	w := pack.New(pack.Options{Registry: client})
//	defer w.Close()
//	im, err := w.Image(ctx, "debian:12", graph.Platform{})
//	for _, l := range im.Layers { entries, err := w.Entries(ctx, l); … }
//	cut, err := w.Relayer(ctx, im, relayer.Options{MaxLayers: 60})
//	receipt, err := w.Write(ctx, []*pack.Image{cut}, pack.Target{Push: true, Names: []string{"registry:5000/debian:12"}})
//
// Nothing that is read is believed: blobs have the digests that documents give them, tars the diff_ids of the
// configuration, or reading fails.
package pack
