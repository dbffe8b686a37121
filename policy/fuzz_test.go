package policy

import (
	"testing"

	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/graph"
)

// FuzzPolicy reads a policy and asks it about a source.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"rules":[{"action":"DENY","selector":{"identifier":"docker-image://*"}}]}`), "docker.io/library/a:1")
	f.Add([]byte(`{"rules":[{"action":"CONVERT","selector":{"identifier":"(.*)","match_type":"REGEX"},"updates":{"identifier":"docker-image://x/${1}"}}]}`), "a")
	f.Add([]byte(`{"rules":[null,{"selector":null},{"action":99}]}`), "")
	f.Fuzz(func(t *testing.T, data []byte, ref string) {
		rules, err := Read(data)
		if err != nil || rules == nil {
			return
		}
		_, err = compile(rules)
		if err != nil {
			t.Fatalf("it was read, but: %v", err)
		}
		p, err := (*Policy)(nil).with(Options{}, []*spb.Policy{rules})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = p.Source(t.Context(), &graph.Image{Ref: ref}, graph.Platform{OS: "linux", Architecture: "amd64"})
	})
}
