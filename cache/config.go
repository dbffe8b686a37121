package cache

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// ConfigType is the media type of a Config.
const ConfigType = "application/vnd.buildkit.cacheconfig.v0"

// Config is a cache on the wire. Indexes count its own lists.
type Config struct {
	Layers  []ConfigLayer  `json:"layers,omitempty"`
	Records []ConfigRecord `json:"records,omitempty"`
	Mounts  []ConfigMount  `json:"strata.mounts,omitempty"` // not of BuildKit, which does not look at it
}

// ConfigMount is the content of a cache mount.
type ConfigMount struct {
	ID   string           `json:"id"`
	List image.Descriptor `json:"list"` // of the blob that holds a mountList
}

// ConfigLayer is one layer, on top of others.
type ConfigLayer struct {
	Blob        graph.Digest      `json:"blob,omitempty"`
	Parent      int               `json:"parent,omitempty"` // -1 = none
	Annotations *LayerAnnotations `json:"annotations,omitempty"`
}

// LayerAnnotations describe a layer where there is no manifest that does: in object stores.
type LayerAnnotations struct {
	MediaType string       `json:"mediaType,omitempty"`
	DiffID    graph.Digest `json:"diffID,omitempty"`
	Size      int64        `json:"size,omitempty"`
	CreatedAt time.Time    `json:"createdAt"`
}

// ConfigRecord is a step.
type ConfigRecord struct {
	Results []ConfigResult  `json:"layers,omitempty"`
	Chains  []ConfigChain   `json:"chains,omitempty"`
	Digest  graph.Digest    `json:"digest,omitempty"`
	Inputs  [][]ConfigInput `json:"inputs,omitempty"`
}

// ConfigResult names the top layer of a result.
type ConfigResult struct {
	Layer     int       `json:"layer"`
	CreatedAt time.Time `json:"createdAt"`
}

// ConfigChain names all layers of a result.
type ConfigChain struct {
	Layers    []int     `json:"layers"`
	CreatedAt time.Time `json:"createdAt"`
}

// ConfigInput is a link.
type ConfigInput struct {
	Selector string `json:"selector,omitempty"`
	Link     int    `json:"link"`
}

const (
	maxConfig = 64 << 20 // bytes of a configuration or manifest that is read
	maxChain  = 1000     // layers of one result
)

// index is a cache that can be searched.
type index struct {
	records  []record
	byDigest map[graph.Digest][]int
	mounts   map[string]image.Descriptor // lists, by the mounts' ids
	from     blobs                       // where they are
}

type record struct {
	digest  graph.Digest
	inputs  [][]ConfigInput
	results []result
}

type result struct {
	chain   []Layer
	created time.Time
}

// parse reads a configuration. Results of which blobs does not know a layer are left out.
func parse(c *Config, blobs map[graph.Digest]Layer) (*index, error) {
	x := &index{records: make([]record, len(c.Records)), byDigest: map[graph.Digest][]int{}, mounts: map[string]image.Descriptor{}}
	for _, m := range c.Mounts {
		x.mounts[m.ID] = m.List
	}
	for i, r := range c.Records {
		for _, in := range r.Inputs {
			for _, l := range in {
				if l.Link < 0 || l.Link >= len(c.Records) {
					return nil, diag.Errorf(diag.Invalid, "record %d of the cache is linked to record %d, which does not exist", i, l.Link)
				}
			}
		}
		x.records[i].digest, x.records[i].inputs = r.Digest, r.Inputs
		x.byDigest[r.Digest] = append(x.byDigest[r.Digest], i)
		for _, res := range r.Results {
			ids, err := c.below(res.Layer)
			if err != nil {
				return nil, err
			}
			x.add(i, c, ids, blobs, res.CreatedAt)
		}
		for _, res := range r.Chains {
			x.add(i, c, res.Layers, blobs, res.CreatedAt)
		}
	}
	return x, nil
}

// below lists the layers that a layer lies on, and itself.
func (c *Config) below(top int) ([]int, error) {
	var ids []int
	for i := top; i != -1; i = c.Layers[i].Parent {
		if i < 0 || i >= len(c.Layers) || len(ids) > maxChain {
			return nil, diag.Errorf(diag.Invalid, "the cache's layer %d does not exist, or has no end", top)
		}
		ids = append([]int{i}, ids...)
	}
	return ids, nil
}

func (x *index) add(rec int, c *Config, ids []int, blobs map[graph.Digest]Layer, created time.Time) {
	res := result{created: created}
	for _, i := range ids {
		if i < 0 || i >= len(c.Layers) || len(res.chain) > maxChain {
			return
		}
		l, ok := blobs[c.Layers[i].Blob]
		if !ok || l.DiffID == "" {
			return
		}
		res.chain = append(res.chain, l)
	}
	if len(res.chain) > 0 {
		x.records[rec].results = append(x.records[rec].results, res)
	}
}

// configLimits bound a configuration. One with a hundred thousand records has about a million values.
var configLimits = strictjson.Limits{Bytes: maxConfig, Values: 1_000_000}

// decode reads a configuration, as long as it is one.
func decode(raw []byte) (*Config, error) {
	var c Config
	if err := configLimits.Unmarshal(raw, &c); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "the cache's configuration cannot be read: %w", err)
	}
	return &c, nil
}

// valid returns a digest if it is one.
func valid(s string) graph.Digest {
	d, err := digest.Parse(s)
	if err != nil {
		return ""
	}
	return d
}
