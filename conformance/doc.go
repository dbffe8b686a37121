// Conformance runs BuildKit's own integration tests against any binary in buildkitd's place, offline.
//
// The tests come from the module github.com/moby/buildkit that go.mod requires, and are compiled as they are but for a few
// digests of public images (edits.go). They ask for public images, name servers and web sites; a world of their own gives
// them those (world.go): a mount, network and process namespace in which /etc, /opt, /run and /tmp are private, a name
// server knows only stand-in hosts, and the registry that the tests mirror images in is filled beforehand with stand-in
// images made from this machine's Debian packages (standins.go).
//
// Words: a *sandbox test* is one function of the suite with one daemon of its own, e.g.
// "dockerfile-builtin TestIntegration/TestCopyChown/worker=oci/frontend=builtin"; a *group* is one compiled test package
// with one setting of its environment (suite.go). A *reference* is a real buildkitd: what it passes is what can be passed
// here, and the bytes that it makes from the stand-in images are the expected ones where upstream expects the bytes that
// come of the public images.
//
// For example, all tests against Strata, and a few against the real buildkitd:
//
//	go run . -daemon ../bin/strata -results results.txt
//	go run . -daemon reference -run 'TestCopy.*'
//
// A line of a results file is: status, group, test and the reason why it did not pass, separated by tabs.
package main
