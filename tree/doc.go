// Package tree holds the trees of files that the steps of a build make and read. A tree never changes once it is made.
//
// A [Stack] is an ordered list of the store's layers, bottom first, seen as overlayfs merges them: a character device 0:0
// (whiteout) hides what is below it, and a directory with the attribute trusted.overlay.opaque=y hides the content of
// the directories below. A [Local] is a directory of the client, seen through the filters of its graph.Local.
//
// Both give the same picture, [Files]: directories are listed and files are looked at when a selector first reaches
// them, and never again. A [Pick] is the part of Files that one graph.Select selects. The digest of a tree (Content) and
// every copy come from picks, so that what is hashed is what is copied. An [Upper] is a layer being written on top of a
// stack; it is written directly, in overlayfs' form, without a mount.
//
//	t := tree.NewLocal(indexes.Get(dir.Key), dir, &graph.Local{Name: "context"})
//	defer t.Release()
//	d, err := t.Content(ctx, graph.Selector{Paths: []graph.Select{{Path: "/src", Contents: true}}})
//
// What is part of a content digest: names, types, modes (07777), owners, sizes, the content of files, link targets,
// device numbers and the attribute security.capability. Times are not, as in BuildKit. The files of a client's directory
// belong to 0:0 and have no extended attributes, also as in BuildKit; their modes count as they are.
package tree
