package buildkit

import (
	"slices"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	apicapspb "github.com/moby/buildkit/util/apicaps/pb"
)

// Each capability of BuildKit is either announced or known to be missing. A new one of a later version is neither.
func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		name          string
		has, all      []*apicapspb.APICap
		missing, want []string
	}{
		{"gateway", frontendAPICaps(), gateway.Caps.All(), []string{"solve.inlinereturn"}, []string{"gateway.exec", "importcaches", "return"}},
		{"llb", llbCaps(), pb.Caps.All(), nil, []string{"mergeop", "source.git.bundle", "exporter.multiple"}},
	} {
		var has []string
		for _, x := range c.has {
			if !x.Enabled || slices.Contains(has, x.ID) || slices.Contains(c.missing, x.ID) {
				t.Errorf("%s: %v", c.name, x)
			}
			has = append(has, x.ID)
		}
		for _, x := range c.all {
			if !slices.Contains(has, x.ID) && !slices.Contains(c.missing, x.ID) {
				t.Errorf("%s: BuildKit has %s: implement and announce it, or list it as missing", c.name, x.ID)
			}
		}
		if len(has)+len(c.missing) != len(c.all) {
			t.Errorf("%s: %d announced, BuildKit has %d", c.name, len(has), len(c.all))
		}
		for _, id := range c.want {
			if !slices.Contains(has, id) {
				t.Errorf("%s: %s is missing", c.name, id)
			}
		}
	}
}
