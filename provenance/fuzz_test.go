package provenance

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
)

// FuzzSteps reads definitions that come with the source files of a build.
func FuzzSteps(f *testing.F) {
	f.Add([]byte("\x0a\x02\x08\x01"), []byte("\x0a\x00"))
	f.Fuzz(func(_ *testing.T, a, b []byte) {
		def := &pb.Definition{Def: [][]byte{a, b, a}}
		c, err := steps(def)
		if err == nil {
			_, _ = places(&pb.Definition{Source: &pb.Source{Infos: []*pb.SourceInfo{nil, {Definition: def}}}}, c)
		}
	})
}
