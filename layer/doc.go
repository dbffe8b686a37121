// Package layer turns image layers into directories and back, and compresses them. Everything is a stream.
//
// Vocabulary. A layer tar is the uncompressed archive of one layer; its sha256 is the diff_id. A blob is the layer as a
// registry stores it, most often compressed. A layer directory has the form of an overlayfs upper directory: a whiteout
// (".wh.x" in the tar) is a character device 0:0 named x, an opaque directory (".wh..wh..opq") carries the xattr
// trusted.overlay.opaque=y. An implied directory is a parent that the tar names only inside of longer paths.
//
// Unpacking. [Decompress] recognises the compression, [NewDigestReader] hashes beside the work, [Apply] writes the
// directory. Layers can be applied in any order and at the same time; what needs the layers below (implied directories,
// hard links to files below, parents that are symlinks below) is kept in [Applied] until [Finish] is called, bottom
// layer first.
//
//	plain, _, err := layer.Decompress(blob)
//	tar := layer.NewDigestReader(plain)
//	applied, err := layer.Apply(ctx, tar, draft.Dir, layer.ApplyOptions{})
//	if tar.Digest() != diffID { … }                        // Apply reads to the end of the stream
//	err = layer.Finish(ctx, draft.Dir, applied, lowerDirs)  // lowerDirs: layer directories, bottom first
//
// Packing. [Walk] lists a layer directory as entries in the order of tar profile 1, [WriteEntries] renders any such
// sequence, [WriteTar] is both, and [DiffID] hashes the result without keeping it. The same tree always gives the same
// bytes.
//
//	gz, err := layer.NewCompressor(w, layer.Compression{Type: layer.Gzip})
//	stats, err := layer.WriteTar(ctx, gz, dir, layer.TarOptions{Epoch: epoch})
//	err = gz.Close()
//
// Looking. [Index] lists a tar, with contents that are read again by offset; an [FS] is what a stack of such lists shows,
// without unpacking it. [FromPath] lists a plain directory with the metadata that options give it. A [Virtual] layer is a
// list and a digest, whose tar is made when somebody reads it.
//
//	entries, err := layer.Index(ctx, file, file)
//	fs := layer.NewFS()
//	err = fs.Add(entries)
//	stats, err := layer.WriteEntries(ctx, w, fs.Entries(), layer.TarOptions{AllXattrs: true})
//
// Tar profile 1: depth first, the children of a directory in byte order of their names; directories end in "/"; no root
// entry; whole seconds, clamped to the epoch; USTAR where it fits, else PAX; no user names; symlinks 0777; xattrs by an
// allow-list; the first path of a hard-linked file is the file; two zero blocks at the end and nothing after them.
package layer
