// Package engine is Strata's façade: it turns a [Request] into images. Every interface of the program (command line,
// servers) speaks to it, and it alone knows all the rooms: wire.go lists what is plugged in.
//
// An [Engine] owns a state root until it is closed. A build reads its files, secrets and credentials from a
// session.Session and tells what it does through an event.Sink.
//
//	e, err := engine.Open(ctx, engine.Options{Root: "/var/lib/strata"})
//	defer e.Close()
//	resp, err := e.Build(ctx, engine.Request{Tags: []string{"app"}}, sess, sink)
package engine
