// Package buildkit serves an engine to BuildKit's clients: buildctl, docker buildx, compose, and whatever else speaks
// BuildKit's gRPC API. The wire types are BuildKit's generated ones; nothing else of BuildKit is used.
//
// Three services are on one socket. Control takes builds (Solve), tells what they do (Status) and gives clients a
// connection back (Session, see package session/remote). LLBBridge is for frontends that run elsewhere, in the client above
// all: each call names the build that it belongs to in its metadata. Health is gRPC's.
//
// A Solve becomes a [build]: an engine.Job, a journal of what it says, and a bridge. The bridge is the build as a frontend
// sees it: it solves definitions and Dockerfiles to references, reads their files and takes the result. A build whose request
// names neither a frontend nor a definition waits for its client to return one over LLBBridge.
//
//	s, err := buildkit.New(e, buildkit.Options{})
//	l, err := buildkit.Listen("unix:///run/buildkit/buildkitd.sock", nil)
//	err = s.Serve(ctx, l)
//
// Everything that comes in is somebody else's: nil messages, unknown numbers and foreign ids are errors, and a panic is one
// call's failure.
package buildkit
