// Package provenance says what was built from what: SLSA provenance, as BuildKit's clients and scanners of images read it.
//
// A package URL names an image wherever it is kept:
//
//	provenance.PackageURL("docker", "alpine:3.20", &graph.Platform{OS: "linux", Architecture: "amd64"})
//	// pkg:docker/alpine@3.20?platform=linux%2Famd64
package provenance
