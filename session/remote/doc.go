// Package remote holds the sessions of BuildKit's clients: what a build needs of a client on the other end of a connection.
//
// A client opens a connection in which it is the gRPC server and the engine's process is its client ([Manager.Serve]).
// The services are BuildKit's: filesync (directories of the client, and back), secrets, sshforward, auth, upload, health.
// A [Session] is what one build uses of such connections; only a connection's own [Peer] may open one on it, so that a build
// cannot use the session of another client.
//
// A directory is received into a slot: a directory below the manager's root that is kept for the next build with the same
// key. Only what changed is sent, and since files keep their inodes and times, what is known of their content is found again.
// A slot belongs to one session at a time; builds of one directory at the same time use several.
//
//	m, err := remote.NewManager(filepath.Join(root, "sessions"), log)
//	go m.Serve(ctx, conn, header, peer)
//	s, err := m.Open(ctx, id, peer)
//	defer s.Close()
//
// Messages are encoded as BuildKit's session protocols define them (session/*/*.proto). The generated packages of BuildKit
// are not used, since each comes with the code of BuildKit's own sessions.
package remote
