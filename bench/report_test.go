package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type fake string

func (f fake) name() string                               { return string(f) }
func (fake) start() error                                 { return nil }
func (fake) stop() error                                  { return nil }
func (fake) build(string, string) []string                { return nil }
func (fake) export(kind, string, string, string) []string { return nil }

func TestTable(t *testing.T) {
	bs := []builder{fake("strata"), fake("slow"), fake("fast"), fake("broken")}
	x := workload{id: "W0", title: "a test", rows: []row{{name: "cold", goal: 0.5, per: 2}, {name: "again"}}}
	r := newReport(bs)
	for round, ms := range []int{30, 10, 20} {
		for i, b := range bs {
			m := &measuring{times: map[string]time.Duration{}, errs: map[string]error{}}
			if b.name() == "broken" {
				m.errs["cold"] = errors.New("no")
			} else {
				m.times["cold"] = time.Duration(ms*[]int{2, 200, 20}[i]) * time.Millisecond
			}
			r.note(x, b, round, m)
		}
	}
	file := filepath.Join(t.TempDir(), "table.md")
	if err := r.write(file, 3, 1); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| W0 cold | 20.0 ms (10.0 ms–30.0 ms) | 2.00 s (1.00 s–3.00 s) | 0.20 s (0.10 s–0.30 s) | fails | 0.10 | ≤ 0.50 |",
		"| W0 again |  |  |  |  |  |  |",
		"## W0: a test",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in\n%s", want, b)
		}
	}
}

func TestWorkloads(t *testing.T) {
	ids := map[string]bool{}
	for _, x := range workloads() {
		if ids[x.id] || x.run == nil || len(x.rows) == 0 {
			t.Errorf("workload %s", x.id)
		}
		ids[x.id] = true
	}
	if got, err := choose([]string{"w3", "W1"}); err != nil || len(got) != 2 || got[0].id != "W3" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := choose([]string{"W99"}); err == nil {
		t.Error("W99 was found")
	}
}

func TestFilesAreTheSameForASeed(t *testing.T) {
	var got [2]string
	for i := range got {
		p := filepath.Join(t.TempDir(), "f")
		if err := writeFile(p, 100_001, 7); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = string(b)
	}
	if got[0] != got[1] || len(got[0]) != 100_001 {
		t.Errorf("%d and %d bytes", len(got[0]), len(got[1]))
	}
}
