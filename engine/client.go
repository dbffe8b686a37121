package engine

import (
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// Client is who a build works for.
type Client = session.Client

// owner is the client of commands of the engine's own user.
func owner() Client { return Client{Owner: true} }

// proxyOwner is what stands in the key of a step that goes through a proxy which its client has named: the proxy may answer
// anything, so the result serves that client only. The proxy itself is in no key, as with BuildKit. "" = no proxy was named, or by
// the owner of the state.
func (b *build) proxyOwner(o *graph.Exec) string {
	if o.Proxy == nil || b.client.Owner {
		return ""
	}
	return "by a proxy of " + b.client.Name
}
