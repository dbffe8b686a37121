// Package proxy is the only way out of a step whose build wants to know what it fetches: an HTTP proxy that records every
// request, lets a policy decide about it, and looks into TLS, for which the step trusts an [Authority] of this process.
//
// A [Proxy] is of one step. Who runs the step listens where only the step can connect, and says how the proxy gets out:
//
//	p := &proxy.Proxy{Authority: authority, Check: policy}
//	stop := p.Serve(listener, dialer.DialContext)
//	runTheStep()
//	stop()
//	for _, m := range p.Materials() {
//		fmt.Println(m.URL, m.Digest)
//	}
//
// What is asked, what the policy decides about and what is recorded are one address in one spelling. A request through a tunnel is
// for the tunnel's authority, or it is refused; so are spellings of hosts that programs read in different ways. What the proxy
// reads and records is bounded, and it waits for nobody forever.
//
// A material is a response that is whole and can be asked for again: to GET, successful, of the full content. What was answered
// otherwise is incomplete, with the reason in BuildKit's words.
package proxy
