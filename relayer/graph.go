package relayer

import (
	"cmp"
	"math/big"
	"slices"
	"strings"
)

// dependencies is the graph of components, with cycles made one node.
type dependencies struct {
	comps  []*component
	group  []int   // of each component: its strongly connected part
	parts  [][]int // of each part: its components
	needs  [][]int // of each part: parts that it depends on, sorted
	reach  []bitset
	closed []int64 // bytes of a part and all that it needs
}

type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitset) or(o bitset) {
	for i := range b {
		b[i] |= o[i]
	}
}

// connect builds the graph. Needs that name no component are left out.
func connect(comps []*component) *dependencies {
	g := &dependencies{comps: comps}
	at := map[string]int{}
	for i, c := range comps {
		at[c.Name] = i
	}
	edges := make([][]int, len(comps))
	for i, c := range comps {
		for _, n := range c.Needs {
			if j, ok := at[n]; ok && j != i {
				edges[i] = append(edges[i], j)
			}
		}
		slices.Sort(edges[i])
		edges[i] = slices.Compact(edges[i])
	}
	g.condense(edges)
	g.close()
	return g
}

// condense finds the strongly connected parts. Source: R. Tarjan, Depth-first search and linear graph algorithms, 1972.
// Parts are numbered so that a part's needs have lower numbers.
func (g *dependencies) condense(edges [][]int) {
	n := len(edges)
	index, low := make([]int, n), make([]int, n)
	on := make([]bool, n)
	g.group = make([]int, n)
	var stack []int
	next := 0
	type frame struct{ v, i int }
	for root := range n {
		if index[root] != 0 {
			continue
		}
		work := []frame{{root, 0}}
		for len(work) > 0 {
			f := &work[len(work)-1]
			v := f.v
			if f.i == 0 {
				next++
				index[v], low[v] = next, next
				stack, on[v] = append(stack, v), true
			}
			if f.i < len(edges[v]) {
				u := edges[v][f.i]
				f.i++
				if index[u] == 0 {
					work = append(work, frame{u, 0})
				} else if on[u] {
					low[v] = min(low[v], index[u])
				}
				continue
			}
			work = work[:len(work)-1]
			if len(work) > 0 {
				p := work[len(work)-1].v
				low[p] = min(low[p], low[v])
			}
			if low[v] != index[v] {
				continue
			}
			var part []int
			for {
				u := stack[len(stack)-1]
				stack, on[u] = stack[:len(stack)-1], false
				g.group[u] = len(g.parts)
				part = append(part, u)
				if u == v {
					break
				}
			}
			slices.Sort(part)
			g.parts = append(g.parts, part)
		}
	}
	g.needs = make([][]int, len(g.parts))
	for i, part := range g.parts {
		for _, v := range part {
			for _, u := range edges[v] {
				if k := g.group[u]; k != i {
					g.needs[i] = append(g.needs[i], k)
				}
			}
		}
		slices.Sort(g.needs[i])
		g.needs[i] = slices.Compact(g.needs[i])
	}
}

// close computes what each part reaches, itself included. Needs have lower numbers, so one pass is enough.
func (g *dependencies) close() {
	g.reach, g.closed = make([]bitset, len(g.parts)), make([]int64, len(g.parts))
	for i := range g.parts {
		g.reach[i] = newBitset(len(g.parts))
		g.reach[i].set(i)
		for _, k := range g.needs[i] {
			g.reach[i].or(g.reach[k])
		}
	}
	for i := range g.parts {
		g.closed[i] = g.sizeOf(g.reach[i])
	}
}

func (g *dependencies) sizeOf(parts bitset) int64 {
	var n int64
	for k, part := range g.parts {
		if parts.has(k) {
			for _, v := range part {
				n += g.comps[v].bytes
			}
		}
	}
	return n
}

// popularity ranks components: the score of one is the sum, over itself and everything that needs it, of the number of
// ways that lead there from the components that nothing needs. Members of a cycle count as one. The numbers grow
// exponentially with depth. Source: the layering of nixpkgs' dockerTools.buildLayeredImage.
func (g *dependencies) popularity() []*component {
	n := len(g.parts)
	ways, score := make([]*big.Int, n), make([]*big.Int, n)
	needed := newBitset(n)
	for i := range n {
		ways[i], score[i] = new(big.Int), new(big.Int)
		for _, k := range g.needs[i] {
			needed.set(k)
		}
	}
	for i := n - 1; i >= 0; i-- { // those that need others first
		if !needed.has(i) {
			ways[i].SetInt64(1)
		}
		for _, k := range g.needs[i] {
			ways[k].Add(ways[k], ways[i])
		}
	}
	for i := range n {
		for k := range i + 1 {
			if g.reach[i].has(k) {
				score[k].Add(score[k], ways[i])
			}
		}
	}
	out := slices.Clone(g.comps)
	at := map[*component]int{}
	for i, c := range g.comps {
		at[c] = g.group[i]
	}
	slices.SortFunc(out, func(a, b *component) int {
		return cmp.Or(score[at[b]].Cmp(score[at[a]]), strings.Compare(a.Name, b.Name))
	})
	return out
}
