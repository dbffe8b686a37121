// Package cache exports what a build made to caches elsewhere, and finds results in them, in BuildKit's format: what Strata
// writes, BuildKit hits, and the other way round. There is one file for each kind of place.
//
// Vocabulary. A record is a step in a cache: the digest of its op and output, for each input the records that it may have come
// from (the link), and the layers of its result, if the cache has them. Content has records too: a COPY is linked to the
// record of the step that it copies from, with a selector that says which files, and to one of the content of these files.
// So a step is found by how its inputs were made, without them being there, or else by what they hold. A chain is the layers
// of one result, bottom first. A cache mount goes as a tar in chunks, cut where its content says so (mounts.go, restore.go).
//
//	m := cache.NewMatcher(keys, ...)
//	m.Add(ctx, cache.Spec{Type: "registry", Attrs: map[string]string{"ref": "localhost:5000/app:cache"}})
//	build.UseRemote(m)
//	...
//	x, err := cache.NewExport(spec, env)
//	meta, err := x.Run(ctx, roots)
//
// The format is application/vnd.buildkit.cacheconfig.v0, as cache/remotecache/v1 of BuildKit describes it: see [Config]. It is
// carried by a manifest or index of a registry or a directory, by the configuration of an image (inline), or by an object
// store. What a cache says is never believed: layers are verified by digest and diff_id, and a damaged or unreachable cache
// is a miss. Whether a record tells the truth about a step nobody can verify: caches are to be trusted like base images.
package cache
