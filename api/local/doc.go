// Package local connects the command line with the engine that owns a state root, on one machine.
//
// The engine's process serves a Unix socket below the directory of run-time state; its name follows from the root. A call is
// one connection: the client sends a request, the server sends events and the outcome. Meanwhile the server may call back
// for what only the client has: secrets, credentials, an ssh agent, where outputs go. Files are passed as descriptors and
// directories by name, so that no content goes through the connection. A client that goes away cancels its call.
//
// Frames are a type (1 byte), the number of descriptors that come with it (1 byte), the length of the body (4 bytes, big
// endian) and the body, in JSON.
//
// A server that takes a call says so first. If the connection ends without that, the call was not begun, and the client
// may start another engine for it: so a command never fails because an engine was just about to end.
//
//	go local.Serve(ctx, listener, engine, local.ServeOptions{})
//	c, err := local.Connect(root, []string{"daemon", "serve", "--ready"}, nil)
//	resp, err := c.Build(ctx, req, sess, sink)
package local
