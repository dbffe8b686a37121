// Package provenance says what was built from what: SLSA provenance in versions 1 and 0.2, as BuildKit's clients and scanners of
// images read it.
//
// [Sources] are what a graph reads: images, repositories, downloads, directories of the client, secrets. [Collect] finds them in
// one walk; what a name stood for, its pin, is asked of the caller. A [Request] is what somebody asked a frontend for, without
// secrets of URLs. A [Build] puts both together, with the steps of the build if they are wanted, and [Build.Predicate] writes it.
//
//	opt, err := provenance.ParseOptions(map[string]string{"mode": "max"})
//	src, err := provenance.Collect([]graph.Edge{root}, pin)
//	b := provenance.Build{Options: opt, Request: provenance.NewRequest("dockerfile.v0", attrs), Sources: src, ID: id, Started: began}
//	predicate, err := b.Predicate(time.Now(), nil)
//
// Nothing here is done unless somebody wants the answer, and all of it takes time in proportion to the graph.
// Source: slsa.dev/provenance/v1 and v0.2; BuildKit's docs/attestations/slsa-definitions.md.
package provenance
