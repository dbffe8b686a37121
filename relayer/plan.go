package relayer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

// Algorithms lists the names that Options take.
func Algorithms() []string { return []string{"origin", "auto", "popularity"} }

// plan puts the components into bins, bottom first: at most MaxLayers less the top layer, and less the one kept for
// components to come.
func plan(comps []*component, opt Options) ([]bin, error) {
	budget := opt.MaxLayers - 2
	if len(comps) == 0 {
		return nil, nil
	}
	if budget < 1 { // no room for a choice: everything that is not volatile, or all in the top layer
		if opt.MaxLayers == 1 {
			return nil, diag.Errorf(diag.Invalid, "one layer is not enough: components need one apart from the top layer").WithHint("use --max-layers 2 or more")
		}
		return []bin{{comps: comps}}, nil
	}
	if len(opt.Previous) > 0 {
		return reuse(comps, opt.Previous, budget), nil
	}
	g := connect(comps)
	algorithm := opt.Algorithm
	if algorithm == "" {
		algorithm = "origin"
		if slices.ContainsFunc(comps, func(c *component) bool { return strings.HasPrefix(c.Name, "nix:") }) {
			algorithm = "auto"
		}
	}
	var bins []bin
	switch algorithm {
	case "popularity":
		bins = singles(g.popularity(), budget, tailBins(budget))
	case "origin":
		bins = singles(bySize(comps), budget, pools(len(comps), budget))
	case "auto":
		bins = g.auto(budget)
	default:
		return nil, suggest(diag.Errorf(diag.Invalid, "no such algorithm: %s: it must be one of %s", algorithm, strings.Join(Algorithms(), ", ")), algorithm, Algorithms())
	}
	return lateLast(bins), nil
}

func suggest(err *diag.Error, word string, known []string) error {
	if s := diag.Suggest(word, known); s != "" {
		return err.WithHint("did you mean %s?", s)
	}
	return err
}

func bySize(comps []*component) []*component {
	out := slices.Clone(comps)
	slices.SortFunc(out, func(a, b *component) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), strings.Compare(a.Name, b.Name))
	})
	return out
}

// tailBins is how many of the bins hold what gets no bin of its own. With more than one, a change of a small component
// sends a part of the rest only.
func tailBins(budget int) int { return max(1, budget/8) }

// pools is tailBins for ranking by size: the more components get no bin of their own, the more of the bins are for them. It depends on
// numbers that an update does not change, and takes few values, for another number moves components. ADR 15 has the measurements.
func pools(comps, budget int) int {
	rest := float64(comps-budget) / float64(comps)
	want := 0.65 * float64(budget) * rest * rest
	best := 1
	for n := 1; n <= budget/2; n = max(n+1, n*4/3) {
		if math.Abs(float64(n)-want) < math.Abs(float64(best)-want) {
			best = n
		}
	}
	return best
}

// singles gives the first components a bin each, and spreads the rest over n.
func singles(ranked []*component, budget, n int) []bin {
	if len(ranked) <= budget {
		return alone(ranked)
	}
	return append(spread(ranked[budget-n:], n), alone(ranked[:budget-n])...)
}

func alone(comps []*component) []bin {
	bins := make([]bin, len(comps))
	for i, c := range comps {
		bins[i].comps = []*component{c}
	}
	return bins
}

// spread puts components into n bins by rendezvous hashing: a component that comes or goes moves no other, and one more
// bin takes from the others only what becomes its own. Source: D. Thaler, C. Ravishankar, A name-based mapping scheme for
// rendezvous, 1996.
func spread(comps []*component, n int) []bin {
	bins := make([]bin, n)
	for _, c := range comps {
		best, at := uint64(0), 0
		for i := range n {
			h := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s", i, c.Name))
			if v := binary.BigEndian.Uint64(h[:]); v > best || i == 0 {
				best, at = v, i
			}
		}
		bins[at].comps = append(bins[at].comps, c)
	}
	return slices.DeleteFunc(bins, func(b bin) bool { return len(b.comps) == 0 })
}

// lateLast moves bins of applications up, and keeps the order otherwise.
func lateLast(bins []bin) []bin {
	slices.SortStableFunc(bins, func(a, b bin) int { return cmp.Compare(late(a), late(b)) })
	return bins
}

func late(b bin) int {
	if slices.ContainsFunc(b.comps, func(c *component) bool { return !c.Late }) {
		return 0
	}
	return 1
}

// reuse keeps each component in the bin where the plan had it, and a new version of one in the bin of the old. Others get
// bins of their own while there are some, the biggest first, and then share the last one.
func reuse(comps []*component, p Plan, budget int) []bin {
	at, families := map[string]int{}, map[string]int{}
	have := map[string]bool{}
	for _, c := range comps {
		have[c.Name] = true
	}
	var bins []bin
	extra := -1
	for _, b := range p {
		i := len(bins)
		if b.New {
			extra = i
		}
		if i >= budget && !b.New { // the limit became smaller
			i = budget - 1
		} else {
			bins = append(bins, bin{})
		}
		for _, name := range b.Components {
			at[name] = i
			if f := family(name); f != name && !have[name] {
				families[f] = i
			}
		}
	}
	var left []*component
	for _, c := range comps {
		if i, ok := at[c.Name]; ok {
			bins[i].comps = append(bins[i].comps, c)
		} else if i, ok := families[cmp.Or(c.Family, c.Name)]; ok {
			bins[i].comps = append(bins[i].comps, c)
		} else {
			left = append(left, c)
		}
	}
	used := len(bins)
	if extra >= 0 {
		used--
	}
	var fresh []bin
	for _, c := range bySize(left) {
		switch {
		case used < budget:
			used++
			fresh = append(fresh, bin{comps: []*component{c}})
		case extra < 0:
			extra = len(bins)
			bins = append(bins, bin{comps: []*component{c}})
		default:
			bins[extra].comps = append(bins[extra].comps, c)
		}
	}
	if extra >= 0 {
		bins[extra].kind = kindNew
	}
	bins = append(bins, fresh...)
	return slices.DeleteFunc(bins, func(b bin) bool { return len(b.comps) == 0 })
}

// family is the name without its version: what generators put behind an @.
func family(name string) string {
	if i := strings.LastIndexByte(name, '@'); i > strings.IndexByte(name, ':')+1 {
		return name[:i]
	}
	return name
}

// auto groups components by the big ones that need them. The biggest component becomes a primary first, then the next, as
// long as the groups fit into the budget. A component's group is the set of primaries that need it, less those that need
// another one of the set: these are farther away. What no primary needs is spread. Groups come in the order of the size of
// all that they need, so a small component that is added on top moves no other layer.
func (g *dependencies) auto(budget int) []bin {
	tail := tailBins(budget)
	at := map[*component]int{}
	for i, c := range g.comps {
		at[c] = g.group[i]
	}
	near := make([][]int, len(g.parts))
	best := g.groups(near)
	primary := newBitset(len(g.parts))
	for _, c := range bySize(g.comps) {
		p := at[c]
		if primary.has(p) {
			continue
		}
		primary.set(p)
		next := g.nearer(near, p)
		groups := g.groups(next)
		n := len(groups)
		if len(groups[""]) > 0 {
			n += tail - 1
		}
		if n > budget {
			break
		}
		near, best = next, groups
	}
	type group struct {
		key    string
		comps  []*component
		closed int64
	}
	var all []group
	for key, comps := range best {
		if key == "" {
			continue
		}
		parts := newBitset(len(g.parts))
		for _, c := range comps {
			parts.or(g.reach[at[c]])
		}
		all = append(all, group{key, comps, g.sizeOf(parts)})
	}
	slices.SortFunc(all, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.closed, b.closed), strings.Compare(a.comps[0].Name, b.comps[0].Name))
	})
	var bins []bin
	for _, x := range all {
		bins = append(bins, bin{comps: x.comps})
	}
	if rest := best[""]; len(rest) > 0 {
		bins = append(spread(rest, tail), bins...)
	}
	return split(bins, budget)
}

// split takes bins of several components apart, those with the most bytes first, as far as the budget goes. Mostly they are
// cycles.
func split(bins []bin, budget int) []bin {
	size := func(b bin) (n int64) {
		for _, c := range b.comps {
			n += c.bytes
		}
		return n
	}
	n := len(bins)
	apart := map[*component]bool{}
	for _, b := range slices.SortedStableFunc(slices.Values(bins), func(a, b bin) int { return cmp.Compare(size(b), size(a)) }) {
		if n+len(b.comps)-1 <= budget {
			n += len(b.comps) - 1
			apart[b.comps[0]] = true
		}
	}
	var out []bin
	for _, b := range bins {
		if apart[b.comps[0]] {
			out = append(out, alone(b.comps)...)
		} else {
			out = append(out, b)
		}
	}
	return out
}

// nearer adds a primary to what each part has: the nearest primaries that need it, none of which needs another one.
func (g *dependencies) nearer(near [][]int, p int) [][]int {
	next := slices.Clone(near)
	for i := range g.parts {
		if !g.reach[p].has(i) || slices.ContainsFunc(near[i], func(q int) bool { return g.reach[p].has(q) }) {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(near[i]), func(q int) bool { return g.reach[q].has(p) })
		next[i] = append(kept, p)
		slices.Sort(next[i])
	}
	return next
}

// groups sorts the components by their nearest primaries, the list of which is the key.
func (g *dependencies) groups(near [][]int) map[string][]*component {
	out := map[string][]*component{}
	keys := make([]string, len(g.parts))
	for i, n := range near {
		if len(n) > 0 {
			keys[i] = fmt.Sprint(n)
		}
	}
	for i, c := range g.comps {
		k := keys[g.group[i]]
		out[k] = append(out[k], c)
	}
	return out
}
