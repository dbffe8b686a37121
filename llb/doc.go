// Package llb translates between BuildKit's build definitions (LLB, the messages of github.com/moby/buildkit/solver/pb) and
// Strata's graph.
//
// A definition is a list of marshalled ops. An op names its inputs by the digest of their bytes and an output's index; the
// last op only names the results. Metadata and source locations hang on the same digests. Decode turns all of it into
// vertices, [Encode] writes vertices as a definition, and what was decoded, encoded and decoded again has the same IDs.
//
//	roots, meta, err := llb.Decode(def, llb.Options{Platform: native})
//	...
//	def, err := llb.Encode(roots...)
//
// A definition comes from anyone. Whatever it holds, Decode returns a graph that makes sense or an error of kind
// diag.Invalid (diag.Unsupported for what is valid, but newer than this package), and never panics: indexes are in
// range, enums known, digests present, strings UTF-8 (JSON, which IDs are made of, would make others equal), depth and
// number bounded. Paths are not resolved here; those who open them resolve them within their trees.
//
// What an op says about BuildKit's own workings is dropped: worker filters are carried but choose nothing, git's advice
// and the result IDs of mounts have no counterpart.
package llb
