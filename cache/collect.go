package cache

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/store"
)

// Results is what a build has made, for its export.
type Results interface {
	// Kept returns the layers of an output that is in the store, and when it was made.
	Kept(ctx context.Context, e graph.Edge) (layers []store.LayerID, made time.Time, ok bool)
	// DiffID returns a layer's diff_id, "" if it is not known yet.
	DiffID(id store.LayerID) graph.Digest
	// Pack returns a layer of the store as a blob.
	Pack(ctx context.Context, id store.LayerID, p Packing) (Layer, error)
	// ReadMount lets read see the directory of a cache mount of this machine, if there is one, as its sharing allows.
	ReadMount(ctx context.Context, m UsedMount, read func(dir string) error) (ok bool, err error)
	// TempDir makes a directory for the time until cleanup is called.
	TempDir(prefix string) (dir string, cleanup func(), err error)
}

// ref is a layer of a result: in the store, or in a cache that was imported.
type ref struct {
	id  store.LayerID
	far *Layer
}

// item is a record that is exported.
type item struct {
	id     string // says all of the record but its result
	digest graph.Digest
	inputs [][]itemLink
	chain  []ref // nil = no result
	made   time.Time
}

type itemLink struct {
	selector graph.Digest
	to       *item
}

// collector makes records of a graph.
type collector struct {
	ctx     context.Context
	keys    *Keys
	matcher *Matcher // nil = nothing was imported
	results Results
	edges   map[graph.Edge][]*item // none = it has no record
	byID    map[string]*item
	items   []*item
}

func newCollector(ctx context.Context, keys *Keys, m *Matcher, r Results) *collector {
	return &collector{ctx: ctx, keys: keys, matcher: m, results: r, edges: map[graph.Edge][]*item{}, byID: map[string]*item{}}
}

// record returns the records of an output: none if it holds a client's directory, or what lies below cannot be known again.
// There are two where BuildKit's digest is ambiguous: Strata finds one, and BuildKit the other.
func (c *collector) record(e graph.Edge) []*item {
	if all, ok := c.edges[e]; ok {
		return all
	}
	c.edges[e] = nil
	all := c.make(e)
	c.edges[e] = all
	return all
}

func (c *collector) make(e graph.Edge) []*item {
	cm := c.keys.of(c.ctx, e.V)
	if cm == nil {
		return nil
	}
	it := &item{digest: llb.RecordDigest(cm.Digest, e.Out), inputs: make([][]itemLink, len(cm.Inputs))}
	for i, in := range cm.Inputs {
		for _, from := range c.record(e.V.In[in.In]) {
			it.inputs[i] = append(it.inputs[i], itemLink{in.Selector, from})
		}
		if in.Content != nil {
			if d := c.content(e.V, in); d != "" {
				it.inputs[i] = append(it.inputs[i], itemLink{"", c.add(&item{digest: d})})
			}
		}
		if len(it.inputs[i]) == 0 {
			return nil
		}
	}
	// A record without inputs is a source, which is not exported: it can be had from where it came.
	if len(cm.Inputs) > 0 && (e.V.Export == nil || *e.V.Export) {
		c.result(it, e)
	}
	if cm.BuildKit == "" {
		return []*item{c.add(it)}
	}
	theirs := *it
	theirs.digest = llb.RecordDigest(cm.BuildKit, e.Out)
	return []*item{c.add(it), c.add(&theirs)}
}

func (c *collector) content(v *graph.Vertex, in llb.CacheInput) graph.Digest {
	if c.matcher != nil {
		if d := c.matcher.contentRecord(c.ctx, v, in.In); d != "" {
			return d
		}
	}
	return c.keys.contentRecord(c.ctx, v, in)
}

// result finds what there is of an output: in the store, or else in the caches that were imported.
func (c *collector) result(it *item, e graph.Edge) {
	if ids, made, ok := c.results.Kept(c.ctx, e); ok {
		it.made = made
		for _, id := range ids {
			it.chain = append(it.chain, ref{id: id})
		}
		return
	}
	if c.matcher == nil {
		return
	}
	if all := c.matcher.results(c.ctx, e); len(all) > 0 {
		it.made = all[0].created
		for i := range all[0].chain {
			it.chain = append(it.chain, ref{far: &all[0].chain[i]})
		}
	}
}

// add adds a record, or returns the one that is equal.
func (c *collector) add(it *item) *item {
	var b strings.Builder
	b.WriteString(string(it.digest))
	for i, in := range it.inputs {
		slices.SortFunc(in, func(a, b itemLink) int {
			return cmp.Or(cmp.Compare(a.to.digest, b.to.digest), cmp.Compare(a.to.id, b.to.id), cmp.Compare(a.selector, b.selector))
		})
		b.WriteString("\n" + strconv.Itoa(i))
		for _, l := range in {
			b.WriteString(" " + string(l.selector) + "=" + l.to.id)
		}
	}
	it.id = digest.FromString(b.String()).Encoded()
	if old := c.byID[it.id]; old != nil {
		if old.chain == nil {
			old.chain, old.made = it.chain, it.made
		}
		return old
	}
	c.byID[it.id] = it
	c.items = append(c.items, it)
	return it
}

// sorted returns the records in an order that depends on them only.
func (c *collector) sorted() []*item {
	all := slices.Clone(c.items)
	slices.SortFunc(all, func(a, b *item) int { return cmp.Or(cmp.Compare(a.digest, b.digest), cmp.Compare(a.id, b.id)) })
	return all
}

// records writes the records without their results.
func records(all []*item) []ConfigRecord {
	at := make(map[*item]int, len(all))
	for i, it := range all {
		at[it] = i
	}
	out := make([]ConfigRecord, len(all))
	for i, it := range all {
		out[i].Digest = it.digest
		for _, in := range it.inputs {
			links := make([]ConfigInput, len(in))
			for k, l := range in {
				links[k] = ConfigInput{Selector: string(l.selector), Link: at[l.to]}
			}
			slices.SortFunc(links, func(a, b ConfigInput) int {
				return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Selector, b.Selector))
			})
			out[i].Inputs = append(out[i].Inputs, links)
		}
	}
	return out
}

// within drops the results that have other layers than those of the roots' results, which a cache of mode min is made of.
func (c *collector) within(roots []graph.Edge) {
	ids, diffs := map[store.LayerID]bool{}, map[graph.Digest]bool{}
	for _, e := range roots {
		it := &item{}
		if e.V != nil {
			c.result(it, e)
		}
		for _, r := range it.chain {
			if r.far != nil {
				diffs[r.far.DiffID] = true
			} else {
				ids[r.id] = true
				diffs[c.results.DiffID(r.id)] = true
			}
		}
	}
	for _, it := range c.items {
		if slices.ContainsFunc(it.chain, func(r ref) bool { return r.far == nil && !ids[r.id] || r.far != nil && !diffs[r.far.DiffID] }) {
			it.chain = nil
		}
	}
}

// layerTable numbers the layers of chains.
type layerTable struct {
	rows map[string]*layerRow // by the digests of the chain up to the layer
}

type layerRow struct {
	key    string
	layer  Layer
	parent *layerRow
	at     int
}

// add returns the row of a chain's top.
func (t *layerTable) add(chain []Layer) *layerRow {
	var up *layerRow
	key := ""
	for _, l := range chain {
		key = string(l.Desc.Digest) + " " + key
		row := t.rows[key]
		if row == nil {
			row = &layerRow{key: key, layer: l, parent: up}
			t.rows[key] = row
		}
		up = row
	}
	return up
}

// config writes the records with their results, given as blobs, and lists the blobs.
func config(all []*item, chains map[*item][]Layer) (*Config, []Layer) {
	c := &Config{Records: records(all)}
	t := layerTable{rows: map[string]*layerRow{}}
	tops := make([]*layerRow, len(all))
	for i, it := range all {
		if chain := chains[it]; len(chain) > 0 {
			tops[i] = t.add(chain)
		}
	}
	rows := make([]*layerRow, 0, len(t.rows))
	for _, r := range t.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *layerRow) int { return cmp.Compare(a.key, b.key) })
	var blobs []Layer
	for i, r := range rows {
		r.at = i
		if n := len(blobs); n == 0 || blobs[n-1].Desc.Digest != r.layer.Desc.Digest {
			blobs = append(blobs, r.layer)
		}
	}
	for _, r := range rows {
		l := ConfigLayer{Blob: r.layer.Desc.Digest, Parent: -1}
		if r.parent != nil {
			l.Parent = r.parent.at
		}
		c.Layers = append(c.Layers, l)
	}
	for i, top := range tops {
		if top != nil {
			c.Records[i].Results = []ConfigResult{{Layer: top.at, CreatedAt: all[i].made.UTC()}}
		}
	}
	return c, blobs
}
