package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	client "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
)

// definitions runs what BuildKit's client defines.
type definitions struct {
	t *testing.T
	e *Engine
	n atomic.Int32 // steps that were not cached
}

func newDefinitions(t *testing.T) *definitions {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return &definitions{t: t, e: e}
}

// count is an event.Sink.
func (d *definitions) count(e event.Event) {
	if e.Kind == event.Done && !e.Cached {
		d.n.Add(1)
	}
}

func (d *definitions) decode(s client.State) graph.Edge {
	d.t.Helper()
	def, err := s.Marshal(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	roots, _, err := llb.Decode(def.ToPB(), llb.Options{Platform: Native()})
	if err != nil {
		d.t.Fatal(err)
	}
	return roots[0]
}

// read builds a state and returns the text of its files by name, "" for those that are not there.
func (d *definitions) read(s client.State, names ...string) (string, error) {
	d.t.Helper()
	j := d.e.NewJob(d.t.Context(), JobOptions{Sink: d.count})
	defer j.Close()
	files, err := j.Files(d.t.Context(), d.decode(s))
	if err != nil {
		return "", err
	}
	var out []string
	for _, n := range names {
		data, err := files.ReadFile(d.t.Context(), n, 1<<20)
		if diag.KindOf(err) == diag.NotFound {
			data, err = []byte("-"), nil
		}
		if err != nil {
			return "", err
		}
		out = append(out, string(data))
	}
	return strings.Join(out, " "), nil
}

func (d *definitions) want(want string, s client.State, names ...string) {
	d.t.Helper()
	got, err := d.read(s, names...)
	if err != nil || got != want {
		d.t.Errorf("%v are %q, want %q (%v)", names, got, want, err)
	}
}

func file(s client.State, name, text string) client.State {
	return s.File(client.Mkfile(name, 0o644, []byte(text)))
}

func TestDefinitions(t *testing.T) {
	d := newDefinitions(t)
	a, b := file(client.Scratch(), "/a", "A"), file(client.Scratch(), "/b", "B")
	ab := client.Merge([]client.State{a, b})
	d.want("A B", ab, "/a", "/b")
	d.want("- B", client.Diff(a, ab), "/a", "/b")
	noA := ab.File(client.Rm("/a"))
	d.want("- B C", client.Merge([]client.State{file(a, "/c", "C"), b, client.Diff(ab, noA)}), "/a", "/b", "/c")
	d.want("A -", client.Merge([]client.State{ab, client.Diff(b, client.Scratch())}), "/a", "/b")
	d.want("- -", client.Diff(ab, ab), "/a", "/b")
	d.want("B", client.NewState(client.NewPassthroughOp("p", []client.PassthroughInput{{State: a}, {State: b, Output: true}}).Output()), "/b")
	d.n.Store(0)
	d.want("A B", ab, "/a", "/b")
	d.want("- B", client.Diff(a, ab), "/a", "/b")
	if n := d.n.Load(); n != 0 {
		t.Errorf("%d steps were run again", n)
	}
}

func TestNestedBuild(t *testing.T) {
	d := newDefinitions(t)
	inner := file(file(client.Scratch(), "/x", "inner"), "/y", "Y")
	def, err := inner.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := def.ToPB().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	holder := file(client.Scratch(), "/dir.llb", string(raw))
	outer := file(holder.With(llbbuild.Build(llbbuild.WithFilename("/dir.llb"))), "/z", "Z")
	d.want("inner Y Z", outer, "/x", "/y", "/z")
	_, err = d.read(holder.With(llbbuild.Build()), "/x")
	if diag.KindOf(err) != diag.NotFound {
		t.Errorf("a missing definition: %v", err)
	}
	_, err = d.read(file(client.Scratch(), "/d", "\xff\xff").With(llbbuild.Build(llbbuild.WithFilename("d"))), "/x")
	if diag.KindOf(err) != diag.Invalid {
		t.Errorf("a wrong definition: %v", err)
	}
}

// A definition holds a definition, which holds the next one, and so on: each takes memory while those below it run.
func TestAttackNestedBuildsWithoutEnd(t *testing.T) {
	d := newDefinitions(t)
	nest := func(depth int) client.State {
		s := file(client.Scratch(), "/x", "inner")
		for range depth {
			def, err := s.Marshal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			raw, err := def.ToPB().Marshal()
			if err != nil {
				t.Fatal(err)
			}
			s = file(client.Scratch(), "/d", string(raw)).With(llbbuild.Build(llbbuild.WithFilename("/d")))
		}
		return s
	}
	d.want("inner", nest(20), "/x")
	if _, err := d.read(nest(maxNestedBuilds+1), "/x"); diag.KindOf(err) != diag.Exhausted {
		t.Errorf("deep: %v", err)
	}
	d.want("inner", nest(21), "/x") // what one build had is not held against the next
}

// Nested builds are counted together, whatever makes them many or big.
func TestAttackManyNestedBuilds(t *testing.T) {
	for name, add := range map[string]struct{ bytes, ops, fit int }{
		"builds": {1, 1, maxNestedBuilds},
		"bytes":  {maxDefinition, 1, maxNestedBytes / maxDefinition},
		"ops":    {1, maxNestedOps / 4, 4},
	} {
		var n nestedBuilds
		for i := range add.fit {
			if err := n.add(add.bytes, add.ops); err != nil {
				t.Fatalf("%s: %d: %v", name, i, err)
			}
		}
		if err := n.add(add.bytes, add.ops); diag.KindOf(err) != diag.Exhausted {
			t.Errorf("%s: one more: %v", name, err)
		}
	}
}

func TestDefinitionsOfCommands(t *testing.T) {
	d := newDefinitions(t)
	data, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("no busybox")
	}
	root := client.Scratch().File(client.Mkdir("/bin", 0o755).Mkdir("/tmp", 0o777).Mkfile("/bin/busybox", 0o755, data).Symlink("busybox", "/bin/sh"))
	if _, err := d.read(root.Run(client.Args([]string{"/bin/busybox", "true"})).Root()); err != nil {
		t.Skip("commands cannot run here: ", err)
	}
	src := file(client.Scratch().File(client.Mkdir("/sub", 0o755)), "/sub/in", "text")
	run := root.Run(client.Shlex(`sh -c "busybox cp /src/in /out/copy; echo -n root > /made; exit 3"`), client.ValidExitCodes(3),
		client.AddMount("/src", src, client.SourcePath("/sub"), client.Readonly))
	out := run.AddMount("/out", file(client.Scratch(), "/old", "o"))
	d.want("text o", out, "/copy", "/old")
	d.want("root -", client.Diff(root, run.Root()), "/made", "/bin/busybox")
	// Directories that commands make hide nothing when they are merged.
	mk := func(name string) client.State {
		return client.Diff(root, root.Run(client.Shlexf(`sh -c "busybox mkdir /d; echo -n %s > /d/%s"`, name, name)).Root())
	}
	d.want("x y -", client.Merge([]client.State{mk("x"), mk("y")}), "/d/x", "/d/y", "/bin/busybox")
	if _, err := d.read(root.Run(client.Shlex("sh -c true"), client.Network(client.NetModeHost)).Root()); diag.KindOf(err) != diag.Denied {
		t.Errorf("the host's network: %v", err)
	}
}

func TestPruneGit(t *testing.T) {
	d := newDefinitions(t)
	dir := filepath.Join(d.e.Root(), "git", "0123456789abcdef0123")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"HEAD": "ref: refs/heads/main", "description": "https://example.com/x.git\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	find := func() (n int) {
		all, err := d.e.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range all {
			if u.Kind == "git" && u.Label == "https://example.com/x.git" && u.Size > 0 && !u.InUse {
				n++
			}
		}
		return n
	}
	for _, tc := range []struct {
		p    PrunePolicy
		left int
	}{
		{PrunePolicy{Until: time.Hour}, 1},
		{PrunePolicy{KeepBytes: 1 << 40}, 1},
		{PrunePolicy{Filters: []string{"type=mount"}}, 1},
		{PrunePolicy{DryRun: true}, 1},
		{PrunePolicy{Filters: []string{"type=git"}}, 0},
	} {
		if _, err := d.e.Prune(t.Context(), tc.p); err != nil {
			t.Fatal(err)
		}
		if n := find(); n != tc.left {
			t.Errorf("%+v: %d left", tc.p, n)
		}
	}
}
