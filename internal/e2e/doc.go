// Package e2e tests what Strata promises when things go wrong, with the program as it is run: processes that are killed in
// the middle of a build, disks that fill up, commands that meet an engine that is just ending, damaged state, many builds.
//
// A [testing.T] gets a site: a state root of its own, a directory for the build context, and the environment of commands.
// Whatever happens there, nothing may be left: site.left lists mounts, processes, control groups and links that belong to
// the site. After each fault the oracle is the same: "strata check --full" finds nothing, and a build gives the image that
// a clean state gives.
//
//	s := newSite(t)
//	s.write("Dockerfile", "FROM base\nRUN echo hello\n")
//	p := s.start("build", "--progress=plain", ".")
//	p.kill(syscall.SIGKILL)
//	s.ok("check", "--full")
//
// Tests that run steps need root, overlayfs, runc and a static busybox, and are skipped without them.
package e2e
