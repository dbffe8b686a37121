// Package store keeps all of a builder's state below one root directory: layers, blobs, results, images, cache mounts.
//
// Vocabulary. A layer is snapshots/N/fs, the upper directory of one overlay mount; N is its [LayerID], which is never used
// twice. A [Draft] is a layer that is still being written. A blob is a file named by the digest of its content, in an OCI
// image layout. A [Result] says which layers a solved vertex made: each output is a stack of layers, bottom first. A [Hold]
// keeps the garbage collector away from what a build is using. An owner is the one process that has the root open.
//
// Everything that the store knows, apart from the files themselves, is a small record: (kind, key) -> checksummed value.
// [Store.Update] changes any number of records at once. The change is in the write-ahead log when Update returns, so it
// survives the death of the process; a background goroutine makes it durable against power loss about a second later, in
// one batch for everything that was written meanwhile (docs/adr/002). A damaged record reads as a miss, with the reason.
//
//	s, err := store.Open("/var/lib/strata", store.Options{})
//	hold := s.Hold()
//	defer hold.Release()
//	d, err := hold.NewLayer(ctx)
//	defer d.Discard() // does nothing once the layer is committed
//	os.WriteFile(filepath.Join(d.Dir, "hello"), nil, 0o644)
//	err = s.Update(ctx, func(b *store.Batch) error {
//		b.Layer(d, store.LayerInfo{Size: 4096, Files: 1})
//		b.Result(key, store.Result{Outputs: [][]store.LayerID{{d.ID}}})
//		return nil
//	})
//	r, err := hold.Result(key) // r.Outputs[0][0] == d.ID
//
// Layout of a root (mode 0700):
//
//	oci-layout index.json blobs/ALG/HEX    OCI image layout; images are records; index.json has their names too
//	snapshots/N/{fs,work}                  layers
//	meta.db                                records, durable (bbolt)
//	wal.N                                  records since the last flush
//	ingest/                                blobs that are being written, kept for resumption
//	mounts/HEX[-N]/                        cache mounts
//	tmp/                                   temporary directories and what waits for deletion
//	index/                                 caches of other packages; may be deleted at any time
//	lock version                           the owner's process id and whether it serves or leaves; the format of this layout
package store
