package relayer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/strata-build/strata/layer"
)

// sent is how many bytes of the bins of one state of components are not among those of another. A component is known by its name and
// its version here.
func sent(before, after []bin, version func(state int, c *component) string) (n int64) {
	id := func(state int, b bin) string {
		var all []string
		for _, c := range b.comps {
			all = append(all, c.Name+" "+version(state, c))
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	have := map[string]bool{}
	for _, b := range before {
		have[id(0, b)] = true
	}
	for _, b := range after {
		if !have[id(1, b)] {
			for _, c := range b.comps {
				n += c.bytes
			}
		}
	}
	return n
}

// TestReplay compares the algorithms on two states of an image of Debian, whose tars RELAYER_OLD and RELAYER_NEW name: the whole
// upgrade, and the upgrade of one source package at a time.
func TestReplay(t *testing.T) {
	old, now := os.Getenv("RELAYER_OLD"), os.Getenv("RELAYER_NEW")
	if old == "" || now == "" {
		t.Skip("RELAYER_OLD and RELAYER_NEW name no images")
	}
	states := [2][]*component{components(t, old), components(t, now)}
	byName := [2]map[string]*component{}
	for i, s := range states {
		byName[i] = map[string]*component{}
		for _, c := range s {
			byName[i][c.Name] = c
		}
	}
	var changed []string
	for name, c := range byName[1] {
		if o := byName[0][name]; o != nil && o.newst != c.newst {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	t.Logf("%d components, %d of them changed: %s", len(states[0]), len(changed), strings.Join(changed, " "))
	for _, max := range []int{100, 50, 20} {
		worst := map[string]int{}
		sums := map[string]int64{}
		whole := map[string]int64{}
		for _, a := range Algorithms() {
			cut := func(comps []*component) []bin {
				bins, err := plan(comps, Options{Algorithm: a, MaxLayers: max})
				if err != nil {
					t.Fatal(err)
				}
				return bins
			}
			version := func(_ int, c *component) string { return fmt.Sprint(c.newst.Unix(), c.bytes) }
			before := cut(states[0])
			whole[a] = sent(before, cut(states[1]), version)
			for _, x := range changed {
				mixed := slices.Clone(states[0])
				mixed[slices.Index(mixed, byName[0][x])] = byName[1][x]
				n := sent(before, cut(mixed), version)
				sums[a] += n
				t.Logf("%d layers, %s, %s: %.1f MB", max, x, a, float64(n)/1e6)
				if a != "origin" {
					continue
				}
				for _, other := range Algorithms()[1:] {
					o, err := plan(states[0], Options{Algorithm: other, MaxLayers: max})
					m, merr := plan(mixed, Options{Algorithm: other, MaxLayers: max})
					if err != nil || merr != nil {
						t.Fatal(err, merr)
					}
					if k := sent(o, m, version); k < n {
						worst[other]++
						t.Logf("    %s sends %.1f MB", other, float64(k)/1e6)
					}
				}
			}
		}
		for _, a := range Algorithms() {
			t.Logf("RESULT %d layers, %s: whole %.1f MB, one at a time %.1f MB on average; better than origin in %d of %d", max, a, float64(whole[a])/1e6, float64(sums[a])/1e6/float64(len(changed)), worst[a], len(changed))
		}
	}
}

// components surveys the file system in a tar.
func components(t *testing.T, name string) []*component {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	entries, err := layer.Index(t.Context(), f, f)
	if err != nil {
		t.Fatal(err)
	}
	fs := layer.NewFS()
	if err := fs.Add(entries); err != nil {
		t.Fatal(err)
	}
	c, err := survey(t.Context(), fs, Options{Generators: Generators()})
	if err != nil {
		t.Fatal(err)
	}
	return c.comps
}
