package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const sampleOutput = `=== RUN   TestIntegration
=== RUN   TestIntegration/TestA/worker=oci
=== PAUSE TestIntegration/TestA/worker=oci
=== RUN   TestIntegration/TestB/worker=oci/frontend=builtin
=== PAUSE TestIntegration/TestB/worker=oci/frontend=builtin
=== RUN   TestIntegration/TestC/worker=oci
=== RUN   TestIntegration/TestD/worker=oci
=== CONT  TestIntegration/TestA/worker=oci
=== RUN   TestIntegration/TestA/worker=oci/propagate=1
=== NAME  TestIntegration/TestB/worker=oci/frontend=builtin
    sandbox.go:210: needs more (cni_network)
=== NAME  TestIntegration/TestA/worker=oci/propagate=1
    a_test.go:10: 
        	Error Trace:	/src/a_test.go:10
        	Error:      	Received unexpected error:
        	            	failed to solve sha256:0000000000000000000000000000000000000000000000000000000000000000
        	            	github.com/moby/buildkit/client.(*Client).solve
        	            		/src/client/solve.go:1
        	Test:       	TestIntegration/TestA/worker=oci
    --- SKIP: TestIntegration/TestB/worker=oci/frontend=builtin (0.10s)
    --- FAIL: TestIntegration/TestA/worker=oci (1.00s)
        --- FAIL: TestIntegration/TestA/worker=oci/propagate=1 (0.50s)
    --- PASS: TestIntegration/TestC/worker=oci (0.10s)
panic: test timed out`

func TestParseOutput(t *testing.T) {
	var ends []string
	out := parseOutput(strings.NewReader(strings.ReplaceAll(strings.ReplaceAll(sampleOutput, "===", "\x16==="), "---", "\x16---")), func(name string, _ result) { ends = append(ends, name) })
	want := map[string]result{
		"TestIntegration/TestA/worker=oci":                  {Status: fail, Reason: "a_test.go:10: failed to solve sha256:…"},
		"TestIntegration/TestB/worker=oci/frontend=builtin": {Status: skip, Reason: "sandbox.go:210: needs more (cni_network)"},
		"TestIntegration/TestC/worker=oci":                  {Status: pass},
	}
	if len(out.results) != len(want) || len(ends) != len(want) {
		t.Errorf("%d results and %d ends, want %d: %v", len(out.results), len(ends), len(want), out.results)
	}
	for name, w := range want {
		if got := out.results[name]; got != w {
			t.Errorf("%s: %+v, want %+v", name, got, w)
		}
	}
	if got, want := again(out.results, out.started), []string{"TestA", "TestD"}; !slices.Equal(got, want) {
		t.Errorf("to run again: %v, want %v", got, want)
	}
}

func TestResultsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.txt")
	was := results{key("client", "A"): {Status: pass}, key("client", "B"): {Status: fail, Reason: "no network"}, key("frontend", "C"): {Status: pass}}
	if err := was.write(file, results{key("client", "A"): {Status: pass}, key("frontend", "C"): {Status: pass}}); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[key("client", "B")] != was[key("client", "B")] || got[key("frontend", "C")].Status != pass {
		t.Errorf("read %v, want %v", got, was)
	}
	lost := regressions(got, results{key("client", "A"): {Status: fail, Reason: "why"}, key("client", "B"): {Status: fail}, key("client", "N"): {Status: fail}})
	if want := []string{"client A: fail: why"}; !slices.Equal(lost, want) {
		t.Errorf("regressions %q, want %q", lost, want)
	}
	lines := was.summary(was)
	if got, want := lines[len(lines)-1], "total: 3 tests, 2 passed, 1 failed, 0 skipped; 2 of the 2 that buildkitd passes (100.0 %)"; got != want {
		t.Errorf("summary %q, want %q", got, want)
	}
}

func TestSubsetHasSixtyFunctions(t *testing.T) {
	n := 0
	for name, functions := range subset {
		if _, ok := groupNamed(name); !ok {
			t.Errorf("there is no group %s", name)
		}
		n += len(functions)
	}
	if n != 60 {
		t.Errorf("the subset has %d functions, want 60", n)
	}
}

// The image is the same each time, and its layer unpacks to its entries.
func TestImageIsReproducible(t *testing.T) {
	build := func() *imageSpec {
		s := &imageSpec{layers: [][]entry{{{path: "etc/", mode: 0o755}, {path: "etc/a", mode: 0o644, content: []byte("a")}, {path: "b", symlink: "etc/a"}}}}
		if err := s.build(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := build()
	if again := build(); again.desc.Digest != s.desc.Digest {
		t.Errorf("built twice: %s and %s", s.desc.Digest, again.desc.Digest)
	}
	z, err := gzip.NewReader(bytes.NewReader(s.blobs[s.layer[0].Digest]))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"etc/", "etc/a", "b"}; !slices.Equal(names, want) {
		t.Errorf("layer has %v, want %v", names, want)
	}
}

func TestNameServer(t *testing.T) {
	ask := func(name string) dnsmessage.Message {
		q := dnsmessage.Message{Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}}}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if b, err = answerName(b); err != nil {
			t.Fatal(err)
		}
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := ask("Example.com."); len(m.Answers) != 1 || m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("example.com: %v, %v", m.RCode, m.Answers)
	}
	if m := ask("elsewhere.invalid."); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("a name that does not exist: %v", m.RCode)
	}
}

func TestHungTestsAreFailed(t *testing.T) {
	const log = "=== RUN   TestI/TestA/worker=oci\n=== RUN   TestI/TestB/worker=oci\n    sandbox.go:147: sandbox timeout reached, stopping worker\n"
	out := parseOutput(strings.NewReader(log), func(string, result) {})
	out.failHung()
	if len(out.results) != 1 || out.results["TestI/TestB/worker=oci"].Reason != hungReason {
		t.Errorf("results %v, want that TestB hung", out.results)
	}
	if !hung(out.results, "TestB") || hung(out.results, "TestA") {
		t.Error("TestB must count as hung and TestA not")
	}
}

func TestWatchdogEndsASilentCommand(t *testing.T) {
	w := newWatchdog(50 * time.Millisecond)
	if err := w.run(exec.Command("sleep", "60")); err == nil || !w.fired {
		t.Errorf("error %v, fired %v: the command must be ended", err, w.fired)
	}
	w = newWatchdog(time.Minute)
	if err := w.run(exec.Command("true")); err != nil || w.fired {
		t.Errorf("error %v, fired %v: the command must end by itself", err, w.fired)
	}
}
