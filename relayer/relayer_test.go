package relayer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// fixed is a generator of given components.
type fixed []Component

func (fixed) Name() string { return "fixed" }

type ctx = context.Context

func (f fixed) Find(_ ctx, _ *layer.FS) ([]Component, error) { return f, nil }

// many makes n components of one file each, the first the biggest; component i needs i+1.
func many(n int, needs bool) (fixed, map[string]string) {
	files := map[string]string{}
	var f fixed
	for i := range n {
		name, p := fmt.Sprintf("c%03d", i), fmt.Sprintf("d/%03d/f", i)
		files[p] = strings.Repeat(string(rune('a'+i%26)), 600*(n-i))
		c := Component{Name: name, Paths: []string{p}}
		if needs && i+1 < n {
			c.Needs = []string{fmt.Sprintf("c%03d", i+1)}
		}
		f = append(f, c)
	}
	return f, files
}

func TestSplitRules(t *testing.T) {
	files := debian()
	files["usr/bin/"] = ""
	fs := tree(t, files)
	layers := cut(t, fs, Options{})
	seen := map[string]int{}
	for i, l := range layers {
		for _, e := range l.Entries {
			if e.Type == layer.Dir && l.Kind != kindTop && (e.Mode != 0o755 || e.UID != 0 || e.ModTime.Unix() != 0) {
				t.Errorf("layer %s: %s is %o of %v", l.Name, e.Path, e.Mode, e.ModTime)
			}
			if e.Type != layer.Dir {
				if seen[e.Path] != 0 {
					t.Errorf("%s is in two layers", e.Path)
				}
				seen[e.Path] = i + 1
			}
		}
	}
	top := layers[len(layers)-1]
	if i := slices.IndexFunc(top.Entries, func(e *layer.Entry) bool { return e.Path == "usr/bin" }); i < 0 || top.Entries[i].Mode != 0o750 {
		t.Error("the top layer has not the real directories")
	}
	if seen["usr/bin/mawk"] != seen["usr/bin/awk.other"] {
		t.Error("names of one file are in different layers")
	}
	if !maps.Equal(digests(t, layers), digests(t, cut(t, tree(t, files), Options{}))) {
		t.Error("the same content gives other layers")
	}
	epoch := time.Unix(10, 0)
	for _, l := range cut(t, fs, Options{Epoch: &epoch}) {
		for _, e := range l.Entries {
			if e.ModTime.After(epoch) {
				t.Errorf("%s is of %v", e.Path, e.ModTime)
			}
		}
	}
	_, err := Split(t.Context(), fs, Options{MaxLayers: 1})
	if diag.KindOf(err) != diag.Invalid {
		t.Errorf("one layer: %v", err)
	}
	_, err = Split(t.Context(), fs, Options{Algorithm: "popular"})
	if diag.KindOf(err) != diag.Invalid {
		t.Errorf("an unknown algorithm: %v", err)
	}
}

// A changed package changes its layer and the top one; with the plan, packages that come and go move no other.
func TestUpgrade(t *testing.T) {
	files := debian()
	before := cut(t, tree(t, files), Options{})
	old := digests(t, before)
	files["usr/bin/mawk"] = "mawk, version 2"
	files["var/lib/dpkg/status"] = strings.Replace(files["var/lib/dpkg/status"], "Package: mawk\n", "Package: mawk\nVersion: 2\n", 1)
	after := cut(t, tree(t, files), Options{Previous: planOf(t, before)})
	changed := map[string]bool{}
	for name, d := range digests(t, after) {
		if old[name] != d {
			changed[name] = true
		}
	}
	if len(changed) != 2 || !changed["top"] {
		t.Errorf("changed: %v", changed)
	}

	files["var/lib/dpkg/status"] += "\nPackage: hello\nStatus: install ok installed\nArchitecture: all\n"
	files["var/lib/dpkg/info/hello.list"] = "/usr/bin/hello\n"
	files["usr/bin/hello"] = strings.Repeat("hello", 100_000) // the biggest of all
	more := cut(t, tree(t, files), Options{Previous: planOf(t, after)})
	then := digests(t, after)
	for name, d := range digests(t, more) {
		if name != "top" && name != "deb:hello" && then[name] != d {
			t.Errorf("a new package changes %s", name)
		}
	}
}

func TestPlanKeepsAndBounds(t *testing.T) {
	gen, files := many(30, false)
	opt := Options{Generators: []Generator{gen}, MaxLayers: 12, Algorithm: "origin"}
	first := cut(t, tree(t, files), opt)
	if len(first) > 11 { // one is kept for what will come
		t.Errorf("%d layers", len(first))
	}
	for i := range 5 {
		p := fmt.Sprintf("d/new%d/f", i)
		files[p] = fmt.Sprint("new", i)
		gen = append(gen, Component{Name: fmt.Sprintf("new%d", i), Paths: []string{p}})
		opt.Generators, opt.Previous = []Generator{gen}, planOf(t, first)
		next := cut(t, tree(t, files), opt)
		if len(next) > 12 {
			t.Fatalf("%d layers", len(next))
		}
		old := map[string]bool{}
		for _, d := range digests(t, first) {
			old[d] = true
		}
		n := 0
		for _, l := range next {
			v, err := layer.NewVirtual(t.Context(), l.Entries, layer.TarOptions{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !old[v.DiffID.String()] {
				n++
			}
		}
		if n != 2 {
			t.Errorf("component %d: %d layers changed", i, n)
		}
		first = next
	}
	// A new version takes the place of the old one.
	p := Plan{{Components: []string{"npm:a@1", "npm:b@1"}}, {Components: []string{"npm:c@1"}}}
	bins := reuse([]*component{{Component: Component{Name: "npm:a@2", Family: "npm:a"}}, {Component: Component{Name: "npm:c@1", Family: "npm:c"}}}, p, 10)
	if len(bins) != 2 || bins[0].comps[0].Name != "npm:a@2" {
		t.Errorf("bins %+v", bins)
	}
	// A lower limit merges what is above it.
	opt.MaxLayers, opt.Previous = 5, planOf(t, first)
	if l := cut(t, tree(t, files), opt); len(l) > 5 {
		t.Errorf("%d layers, at most 5 were allowed", len(l))
	}
	if l := cut(t, tree(t, files), Options{Generators: []Generator{gen}, MaxLayers: 2}); len(l) != 2 {
		t.Errorf("%d layers, want 2", len(l))
	}
}

// Without a plan, of components that come or go at most the bin of their own changes.
func TestRendezvous(t *testing.T) {
	var comps []*component
	for i := range 200 {
		comps = append(comps, &component{Component: Component{Name: fmt.Sprintf("c%d", i)}})
	}
	before := spread(comps, 8)
	after := spread(comps[1:], 8)
	changed := 0
	for i := range before {
		if len(before[i].comps) != len(after[i].comps) {
			changed++
		}
		if n := len(before[i].comps); n < 5 || n > 60 {
			t.Errorf("bin %d has %d of 200 components", i, n)
		}
	}
	if changed != 1 {
		t.Errorf("%d bins changed", changed)
	}
	moved := 0
	nine := spread(comps, 9)
	for i := range before {
		for _, c := range before[i].comps {
			if !slices.Contains(nine[i].comps, c) {
				if moved++; !slices.Contains(nine[8].comps, c) {
					t.Errorf("%s went from one old bin to another", c.Name)
				}
			}
		}
	}
	if moved == 0 || moved > 50 {
		t.Errorf("a ninth bin took %d of 200", moved)
	}
}

// graph is written as "a:b,c": a needs b and c; sizes are 100, unless a number follows.
func comps(spec ...string) []*component {
	var out []*component
	for _, s := range spec {
		name, needs, _ := strings.Cut(s, ":")
		c := &component{Component: Component{Name: name, Needs: strings.FieldsFunc(needs, func(r rune) bool { return r == ',' })}, bytes: 100, files: 1}
		if n, size, ok := strings.Cut(name, "="); ok {
			c.Name = n
			fmt.Sscan(size, &c.bytes)
		}
		out = append(out, c)
	}
	return out
}

func namesOf(list []*component) string {
	var s []string
	for _, c := range list {
		s = append(s, c.Name)
	}
	return strings.Join(s, " ")
}

func TestPopularity(t *testing.T) {
	for _, c := range []struct {
		spec []string
		want string
	}{
		// ways: a 1, b 1, c 1, d 2; scores: d 5 (d, b, c, a), b and c 2, a 1
		{[]string{"a:b,c", "b:d", "c:d", "d:"}, "d b c a"},
		// what two programs need comes before what a chain needs once
		{[]string{"p:x", "q:x", "r:y", "x:", "y:"}, "x y p q r"},
		// a cycle counts as one
		{[]string{"a:b", "b:c", "c:b", "z:"}, "b c a z"},
	} {
		if got := namesOf(connect(comps(c.spec...)).popularity()); got != c.want {
			t.Errorf("%v: %s, want %s", c.spec, got, c.want)
		}
	}
	// A ladder of diamonds: 2^300 ways, more than any machine number.
	var spec []string
	for i := range 300 {
		spec = append(spec, fmt.Sprintf("n%03d:l%d,r%d", i, i, i), fmt.Sprintf("l%d:n%03d", i, i+1), fmt.Sprintf("r%d:n%03d", i, i+1))
	}
	ranked := connect(comps(append(spec, "n300:")...)).popularity()
	if ranked[0].Name != "n300" || ranked[len(ranked)-1].Name != "n000" {
		t.Errorf("from %s to %s", ranked[0].Name, ranked[len(ranked)-1].Name)
	}
}

func binNames(bins []bin) string {
	var s []string
	for _, b := range bins {
		s = append(s, namesOf(b.comps))
	}
	return strings.Join(s, " | ")
}

func TestAuto(t *testing.T) {
	// Two applications share libc and ssl; each has a library of its own. ssl is big enough to be a primary.
	g := connect(comps("app1=1000:lib1,ssl", "app2=900:lib2,ssl", "lib1=10:libc", "lib2=10:libc", "ssl=500:libc", "libc=400:"))
	if got := binNames(g.auto(3)); got != "ssl libc | app2 lib2 | app1 lib1" {
		t.Errorf("three layers: %s", got)
	}
	if got := binNames(g.auto(20)); got != "libc | lib1 | lib2 | ssl | app2 | app1" {
		t.Errorf("enough layers: %s", got)
	}
	// Members of a cycle are apart if there is room for it.
	cycle := connect(comps("a=9:b", "b=8:a", "c=7:"))
	if got := binNames(cycle.auto(2)); got != "c | a b" {
		t.Errorf("a cycle: %s", got)
	}
	if got := binNames(cycle.auto(3)); got != "c | a | b" {
		t.Errorf("a cycle with room: %s", got)
	}
	// What is added on top and small moves nothing.
	before := binNames(g.auto(20))
	leaf := connect(comps("app1=1000:lib1,ssl", "app2=900:lib2,ssl", "lib1=10:libc", "lib2=10:libc", "ssl=500:libc", "libc=400:", "leaf=1:app1"))
	if got := binNames(leaf.auto(20)); got != before+" | leaf" {
		t.Errorf("with a leaf: %s", got)
	}
}

func TestLongChains(t *testing.T) {
	for _, algorithm := range Algorithms() {
		gen, files := many(200, true)
		layers := cut(t, tree(t, files), Options{Generators: []Generator{gen}, Algorithm: algorithm, MaxLayers: 20})
		if len(layers) > 19 || len(layers) < 3 {
			t.Errorf("%s: %d layers", algorithm, len(layers))
		}
		n := 0
		for _, l := range layers {
			n += len(l.Components)
		}
		if n != 200 {
			t.Errorf("%s: %d of 200 components are somewhere", algorithm, n)
		}
	}
}
