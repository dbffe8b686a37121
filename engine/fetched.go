package engine

import (
	"context"
	"maps"
	"reflect"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/proxy"
)

// fetched are the proxies of a build's steps, with what they recorded.
type fetched struct {
	mu      sync.Mutex
	proxies map[graph.Digest]*proxy.Proxy
}

// proxyOf makes the proxy of a step, and remembers it; nil if its network is none.
func (b *build) proxyOf(v *graph.Vertex, network graph.Network) (*proxy.Proxy, error) {
	p, err := b.newProxy(network)
	if p == nil || err != nil {
		return nil, err
	}
	b.fetched.mu.Lock()
	defer b.fetched.mu.Unlock()
	if b.fetched.proxies == nil {
		b.fetched.proxies = map[graph.Digest]*proxy.Proxy{}
	}
	b.fetched.proxies[v.ID] = p
	return p, nil
}

// newProxy makes a proxy for a network; nil if the network is none.
func (b *build) newProxy(network graph.Network) (*proxy.Proxy, error) {
	if network.Direct() == network {
		return nil, nil
	}
	a, err := b.e.authority()
	if err != nil {
		return nil, err
	}
	p := &proxy.Proxy{Authority: a}
	if b.policy != nil {
		p.Check = b.mayFetch
	}
	return p, nil
}

// mayFetch asks the build's policy about a request of a step, as about a download. It can choose another address, and no more.
func (b *build) mayFetch(ctx context.Context, url string) (string, error) {
	op, err := b.policy.Source(ctx, &graph.HTTP{URL: url}, Native())
	if err != nil {
		return "", err
	}
	h, ok := op.(*graph.HTTP)
	if !ok || !reflect.DeepEqual(*h, graph.HTTP{URL: h.URL}) {
		return "", diag.Errorf(diag.Denied, "the source policy makes of %s what a step's request cannot be", url)
	}
	return h.URL, nil
}

// Fetched returns what steps of the build have asked their proxies for, by the vertex. Steps that did not have to run are not
// among them.
func (j *Job) Fetched() map[graph.Digest]*proxy.Proxy {
	j.b.fetched.mu.Lock()
	defer j.b.fetched.mu.Unlock()
	return maps.Clone(j.b.fetched.proxies)
}
