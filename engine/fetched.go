package engine

import (
	"context"
	"reflect"
	"strings"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/provenance"
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
	a, err := proxy.NewAuthority()
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
// What the policy leaves as it is goes out as the step wrote it: its method may not bear another address.
func (b *build) mayFetch(ctx context.Context, url string) (string, error) {
	asked, err := graph.Normalize(&graph.HTTP{URL: url})
	if err != nil {
		return "", err
	}
	op, err := b.policy.Source(ctx, asked, Native())
	if op == asked || err != nil {
		return url, err
	}
	h, ok := op.(*graph.HTTP)
	if !ok || !reflect.DeepEqual(*h, graph.HTTP{URL: h.URL}) {
		return "", diag.Errorf(diag.Denied, "the source policy makes of %s what a step's request cannot be", url)
	}
	return h.URL, nil
}

// addFetched adds to the sources of a tree what its steps have fetched by their proxies. Of a step that did not have to run it is not
// known.
func (b *build) addFetched(s *provenance.Sources, root graph.Edge) {
	b.fetched.mu.Lock()
	defer b.fetched.mu.Unlock()
	graph.Walk([]graph.Edge{root}, func(v *graph.Vertex) {
		o, ok := v.Op.(*graph.Exec)
		if !ok || o.Network.Direct() == o.Network {
			return
		}
		p := b.fetched.proxies[v.ID]
		if p == nil {
			s.Fetched(nil, nil)
			s.Incomplete = true
			return
		}
		var done []provenance.Download
		for _, m := range p.Materials() {
			done = append(done, provenance.Download{URL: m.URL, Digest: graph.Digest(m.Digest)})
		}
		var missed []provenance.Missed
		for _, m := range p.Incomplete() {
			missed = append(missed, provenance.Missed{Step: strings.Join(o.Args, " "), Method: m.Method, URL: m.URL, Reason: m.Reason})
		}
		s.Fetched(done, missed)
	})
}
