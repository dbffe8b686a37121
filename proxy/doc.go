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
// A material is a response that is whole and can be asked for again: to GET, successful, of the full content. What was answered
// otherwise is incomplete, with the reason in BuildKit's words.
package proxy
