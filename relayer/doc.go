// Package relayer finds out what a file system consists of, and cuts it into layers that stay the same as long as their
// components do.
//
// A [Generator] finds components: the packages of a package manager, the modules of a language, single big files. A
// component claims paths; each file belongs to one component at most. What nobody claims, package databases, caches, logs
// and the metadata of directories make the top layer. An algorithm puts components into bins, one layer each:
//
//	origin      the biggest source packages have layers of their own
//	auto        what the same big components need shares a layer
//	popularity  what most others need has a layer of its own (Nix's layered images)
//
// The plan, which component is in which bin, is kept in annotations of the layers. A [Plan] that was read from the image
// before keeps every component where it was; one bin is for components that are new. So a change of one component changes
// its layer and the top one, nothing else.
//
// Rules for digests that stay: directories above a component's files are root's, 0755 and of time 0 in its layer, and have
// their real metadata in the top layer; names of one file are never split; times are clamped to the component's own; no
// clock is asked. [Split] checks that the layers together show exactly the file system that they were made from.
//
//	fs, err := workspace.FS(ctx, im)
//	layers, err := relayer.Split(ctx, fs, relayer.Options{MaxLayers: 60})
//	for _, l := range layers { fmt.Println(l.Name, len(l.Entries)) }
package relayer
