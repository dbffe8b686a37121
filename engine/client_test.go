package engine

import (
	"testing"

	"github.com/strata-build/strata/graph"
)

// A client's proxy answers a step with what it likes: the step's result must have another key than that of clients without it.
func TestAttackProxyOfAnotherClient(t *testing.T) {
	op := &graph.Exec{Args: []string{"wget", "http://example.com/"}}
	proxied := *op
	proxied.Proxy = &graph.ProxyEnv{HTTP: "http://192.0.2.1:3128"}
	pin := func(c Client, o *graph.Exec) string {
		b := &build{client: c}
		p, err := runner{}.Pin(t.Context(), graph.New(o, nil), b)
		if err != nil {
			t.Fatal(err)
		}
		return p.Value
	}
	one, other := Client{Name: "uid 1000"}, Client{Name: "uid 1001"}
	plain := pin(one, op)
	if pin(other, op) != plain || pin(owner(), &proxied) != plain {
		t.Error("steps without a client's proxy do not share their results")
	}
	if pin(one, &proxied) == plain || pin(one, &proxied) == pin(other, &proxied) {
		t.Error("the result of a client's proxy serves other clients")
	}
	again := proxied
	again.Proxy = &graph.ProxyEnv{HTTP: "http://192.0.2.2:3128"}
	if pin(one, &proxied) != pin(one, &again) {
		t.Error("another proxy of the same client runs the step again")
	}
}
