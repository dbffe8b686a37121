package solve

import (
	"context"
	"testing"

	"github.com/strata-build/strata/graph"
)

// elsewhere is a cache elsewhere: it has results by the names of vertices, and says what inputs hold.
type elsewhere struct {
	name   string
	has    map[string]map[string]string // files by vertex
	claims map[string]Claim             // by the vertex that uses the input
	f      *fake
}

func (c *elsewhere) Find(_ context.Context, v *graph.Vertex, _ []int) (*Found[files], bool) {
	m, ok := c.has[v.Name]
	if !ok {
		return nil, false
	}
	return &Found[files]{Outputs: []files{c.f.result(m, "")}, Origin: c.name}, false
}

func (c *elsewhere) Token(_ context.Context, v *graph.Vertex, _ int) (Claim, bool) {
	claim, ok := c.claims[v.Name]
	return claim, ok
}

func (c *elsewhere) Has(_ context.Context, e graph.Edge) bool { return c.has[e.V.Name] != nil }

func (c *elsewhere) Origins(context.Context) []string { return OriginOf(c.name) }

// solveWith solves an edge in a build that imports a cache, and returns the files.
func solveWith(t *testing.T, s *Solver[files, *world], c *elsewhere, tenant string, e graph.Edge) map[string]string {
	t.Helper()
	b := s.Build(t.Context(), &world{tag: "sha256:a"}, BuildOptions{Tenant: tenant})
	defer b.Close()
	if c != nil {
		b.UseRemote(c)
	}
	out, err := b.Solve(e)
	if err != nil {
		t.Fatal(err)
	}
	return out[0].m
}

func TestPoisonedCacheServesOnlyWhoNamesIt(t *testing.T) {
	s, f := newWorld()
	tools := exec("tools", "install", graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))})
	app := exec("app", "make", tools)
	evil := &elsewhere{name: "evil.example.com/cache", f: f, has: map[string]map[string]string{"tools": {"/evil": "yes"}}}
	if got := solveWith(t, s, evil, "", app); got["/evil"] != "yes" || got["/out"] != "make" {
		t.Errorf("the build that names the cache has %v", got)
	}
	want(t, "named", f.took(), "app")
	if got := solveWith(t, s, nil, "", app); got["/evil"] != "" {
		t.Errorf("a build that names no cache has %v", got)
	}
	want(t, "no cache named", f.took(), "base", "tools", "app")
	other := &elsewhere{name: "other.example.com/cache", f: f}
	if got := solveWith(t, s, other, "", app); got["/evil"] != "" {
		t.Errorf("a build that names another cache has %v", got)
	}
	want(t, "another cache named", f.took())
}

func TestResultsMadeFromACacheAreFoundWithIt(t *testing.T) {
	s, f := newWorld()
	tools := exec("tools", "install", graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))})
	app := exec("app", "make", tools)
	c := &elsewhere{name: "ci.example.com/cache", f: f, has: map[string]map[string]string{"tools": {"/tools": "yes"}}}
	solveWith(t, s, c, "", app)
	want(t, "first", f.took(), "app")
	c.has = nil
	if got := solveWith(t, s, c, "", app); got["/tools"] != "yes" {
		t.Errorf("files %v", got)
	}
	want(t, "again", f.took())
	trusted := &elsewhere{f: f, has: map[string]map[string]string{"base": {"/base": "trusted"}, "tools": {"/tools": "trusted"}, "app": {"/app": "trusted"}}}
	solveWith(t, s, trusted, "", app)
	if got := solveWith(t, s, nil, "", app); got["/app"] != "trusted" {
		t.Errorf("of a cache that the operator trusts: %v", got)
	}
	want(t, "trusted", f.took())
}

// A cache that lies about what an input holds must not give a step of other builds the wrong key.
func TestClaimedContentNamesNobodyElsesKeys(t *testing.T) {
	s, f := newWorld()
	base := graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))}
	tools := exec("tools", "install", base)
	app := copyFrom("app", "/out", base, tools)
	evil := &elsewhere{name: "evil", f: f, claims: map[string]Claim{"app": {Content: OriginKey("lie", nil), Origin: "evil"}}}
	solveWith(t, s, evil, "", app)
	want(t, "claimed", f.took(), "base", "tools", "app")
	if got := solveWith(t, s, nil, "", app); got["/out"] != "install" {
		t.Errorf("files %v", got)
	}
	want(t, "unclaimed", f.took(), "app") // its key is another one
	solveWith(t, s, evil, "", app)
	want(t, "again", f.took())
}

func TestTenantsShareNoResults(t *testing.T) {
	s, f := newWorld()
	app := exec("app", "make", graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))})
	for _, tenant := range []string{"user 1000", "user 1001", ""} {
		solveWith(t, s, nil, tenant, app)
		want(t, "the first build of "+tenant, f.took(), "base", "app")
		solveWith(t, s, nil, tenant, app)
		want(t, "the second build of "+tenant, f.took())
	}
}

func TestUnion(t *testing.T) {
	a, b := []string{"b"}, []string{"a", "b"}
	if got := Union(a, nil, b, a); len(got) != 2 || got[0] != "a" || got[1] != "b" || len(a) != 1 {
		t.Errorf("union %q", got)
	}
	if Union() != nil || OriginKey("k", nil) != "k" || OriginKey("k", a) == OriginKey("k", b) {
		t.Error("keys of origins")
	}
}
