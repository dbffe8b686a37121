package buildkit

import (
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
)

// Sizes mean what they mean in BuildKit.
func TestGCRuleKeep(t *testing.T) {
	b := func(n int64) Space { return Space{Bytes: n} }
	const disk, free, total = 1000, 100, 500
	for _, c := range []struct {
		rule GCRule
		want int64
	}{
		{GCRule{}, 0},
		{GCRule{MaxUsed: b(300)}, 300},
		{GCRule{MaxUsed: Space{Percent: 60}}, 600},
		{GCRule{MaxUsed: b(300), Reserved: b(400)}, 400},
		{GCRule{Reserved: b(200)}, 200},
		{GCRule{MinFree: b(90)}, total},
		{GCRule{MinFree: b(250)}, 350},
		{GCRule{MinFree: Space{Percent: 25}}, 350},
		{GCRule{MinFree: b(250), MaxUsed: b(300)}, 300},
		{GCRule{MinFree: b(400), MaxUsed: b(300)}, 200},
		{GCRule{MinFree: b(400), MaxUsed: b(300), Reserved: b(250)}, 250},
		{GCRule{MinFree: b(5000)}, 1},
	} {
		if got := c.rule.keep(total, disk, free); got != c.want {
			t.Errorf("%+v: %d, want %d", c.rule, got, c.want)
		}
	}
	for _, bad := range []GCRule{{KeepDuration: -1}, {MaxUsed: b(-1)}, {Filters: []string{"colour==red"}}} {
		if err := bad.Check(); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// The rules of the operator are carried out one after the other, and clients can read them.
func TestGCRules(t *testing.T) {
	addr, e := serve(t, Options{})
	c := dial(t, addr)
	result := func(name string) {
		t.Helper()
		file := &pb.FileActionMkFile{Path: name, Mode: 0o644, Data: make([]byte, 64<<10), Timestamp: -1}
		op := &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: file}}}}}}
		if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: name, Definition: define(t, op)}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		t.Helper()
		all, err := e.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range all {
			if strings.Contains(u.Label, "/gc-") {
				n++
			}
		}
		return n
	}
	result("/gc-a")
	result("/gc-b")
	for _, step := range []struct {
		rule GCRule
		want int
	}{
		{GCRule{Reserved: Space{Bytes: 1 << 40}}, 2},
		{GCRule{MaxUsed: Space{Percent: 100}, MinFree: Space{Bytes: 1}}, 2},
		{GCRule{All: true, KeepDuration: time.Hour}, 2},
		{GCRule{All: true, Filters: []string{"type==exec.cachemount", "type==source.local"}}, 2},
		{GCRule{All: true, MaxUsed: Space{Bytes: 1}}, 0},
	} {
		s, err := New(e, Options{GC: []GCRule{step.rule}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != step.want {
			t.Errorf("%+v leaves %d", step.rule, n)
		}
		p := s.workers()[0].GCPolicy
		if len(p) != 1 || p[0].All != step.rule.All || p[0].KeepDuration != int64(step.rule.KeepDuration) || p[0].ReservedSpace != step.rule.Reserved.Bytes || len(p[0].Filters) != len(step.rule.Filters) {
			t.Errorf("clients read %+v", p)
		}
	}
	// A client's own prune knows the space that is to be free.
	result("/gc-c")
	prune := func(req *control.PruneRequest) {
		t.Helper()
		s, err := c.Prune(t.Context(), req)
		for err == nil {
			_, err = s.Recv()
		}
	}
	if prune(&control.PruneRequest{All: true, MinFreeSpace: 1}); count() != 1 {
		t.Error("enough was free, and something went")
	}
	if prune(&control.PruneRequest{All: true, MinFreeSpace: 1 << 60}); count() != 0 {
		t.Error("what is to be free is not obeyed")
	}
}

// A rule is carried out when the daemon starts.
func TestGCAtStart(t *testing.T) {
	dir := t.TempDir()
	addr, _, stop := serveAt(t, dir, Options{})
	if _, err := dial(t, addr).ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "a", Definition: mkdir(t, "/gc-start")}); err != nil {
		t.Fatal(err)
	}
	stop()
	_, e, stop := serveAt(t, dir, Options{GC: []GCRule{{All: true}}})
	defer stop()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		all, err := e.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		left := false
		for _, u := range all {
			left = left || strings.Contains(u.Label, "/gc-start")
		}
		if !left {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the result stays")
		}
	}
}
