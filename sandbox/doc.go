// Package sandbox runs one command of a build in a container and leaves nothing behind.
//
// A [Spec] says what to run: a mounted root file system, arguments, mounts, network, limits. [Sandbox.Run] makes the
// container of it, or has runc make it, and returns how the command ended, an [Exit]; an error means that it could not be run at all. The
// package knows host paths only: what the root file system is made of, and what becomes of it, is the caller's business.
//
// Words: a bundle is the temporary directory of one run, with the runtime's configuration (an OCI runtime spec) and the
// generated files; a stub is an empty file or directory that exists only so that something can be mounted on it, and is
// removed after the run; a slot is a network namespace that is ready to be used, and is used again, as control groups are; the owner is a short
// hash of the state directory, part of every name that other programs can see (containers, cgroups, links, firewall
// tables), so that two Stratas do not touch each other's and [Sandbox.Sweep] finds what a dead one left.
//
//	sb, err := sandbox.New(sandbox.Options{Root: "/var/lib/strata/sandbox"})
//	exit, err := sb.Run(ctx, &sandbox.Spec{
//		RootFS: "/mnt/debian", Args: []string{"make"}, Cwd: "/src", User: "builder",
//		Mounts: []sandbox.Mount{{Type: sandbox.Bind, Source: "/home/me/src", Target: "/src", ReadOnly: true}},
//		Stdout: os.Stdout, Stderr: os.Stderr,
//	})
//	// exit.Code == 2: make failed
package sandbox
