package llb

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// The digests are those of BuildKit 0.34, written out as the JSON that it hashes.
func TestCacheMap(t *testing.T) {
	amd64 := graph.Platform{OS: "linux", Architecture: "amd64"}
	base := graph.New(&graph.Image{Ref: "docker.io/library/base:1"}, nil, graph.On(amd64))
	local := graph.New(&graph.Local{Name: "context"}, nil)
	root := graph.Mount{Type: graph.MountBind, Target: "/"}
	when := time.Unix(1, 5)
	image := digest.FromString(`{"Digest":"sha256:11","OS":"linux","Arch":"amd64"}`)
	for name, c := range map[string]struct {
		v    *graph.Vertex
		pin  SourcePin
		want string
	}{
		"image": {base, SourcePin{Image: "sha256:11"}, "buildkit.source.v0:" + string(image)},
		"git": {
			graph.New(&graph.Git{Remote: "https://example.com/x.git", Ref: "main", KeepDir: true, Subdir: "d"}, nil),
			SourcePin{Commit: "c0ffee"},
			"buildkit.source.v0:c0ffee.git#main:d",
		},
		"run": {
			graph.New(&graph.Exec{Args: []string{"true"}, Cwd: "/", Mounts: []graph.Mount{root}}, []graph.Edge{{V: base}}, graph.On(amd64)),
			SourcePin{},
			`{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["true"],"cwd":"/"}},"OS":"linux","Arch":"amd64"}`,
		},
		"mounts": {
			graph.New(&graph.Exec{Args: []string{"true"}, Mounts: []graph.Mount{
				root,
				{Type: graph.MountBind, Target: "/s", Input: 1, Source: "/sub", Output: graph.None, ReadOnly: true},
				{Type: graph.MountCache, Target: "/c", CacheID: "mine", Sharing: graph.SharingLocked, Input: graph.None, Output: graph.None},
			}}, []graph.Edge{{V: base}, {V: local}}, graph.On(amd64)),
			SourcePin{},
			`{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["true"]},"mounts":[{"dest":"/"},{"input":1,"dest":"/s","output":-1,"readonly":true},` +
				`{"input":-1,"dest":"/c","output":-1,"mountType":3,"cacheOpt":{}}]},"OS":"linux","Arch":"amd64"}`,
		},
		"copy": {
			graph.New(&graph.File{Actions: []graph.Action{{In: 0, From: 1, Out: 0, Copy: &graph.Copy{Src: "/a/b", Dest: "/", Time: &when}}}},
				[]graph.Edge{{V: base}, {V: local}}),
			SourcePin{},
			// The actions are base64 of {"src":"b","dest":"/","mode":-1,"timestamp":1000000005}.
			`{"Type":"buildkit.file.v0","Actions":["eyJzcmMiOiJiIiwiZGVzdCI6Ii8iLCJtb2RlIjotMSwidGltZXN0YW1wIjoxMDAwMDAwMDA1fQ=="]}`,
		},
		"merge": {
			graph.New(&graph.Merge{}, []graph.Edge{{V: base}, {V: local}}),
			SourcePin{},
			`{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}`,
		},
	} {
		m, err := NewCacheMap(c.v, c.pin)
		if err != nil {
			t.Fatal(err)
		}
		if want := digest.FromString(c.want); m.Digest != want {
			t.Errorf("%s: %s, not the digest of %s", name, m.Digest, c.want)
		}
	}
	if m, err := NewCacheMap(local, SourcePin{}); m != nil || err != nil {
		t.Errorf("a client's directory: %+v, %v", m, err)
	}
}

func TestCacheMapInputs(t *testing.T) {
	base := graph.New(&graph.Image{Ref: "docker.io/library/base:1"}, nil)
	local := graph.New(&graph.Local{Name: "context"}, nil)
	v := graph.New(&graph.File{Actions: []graph.Action{
		{In: graph.None, From: 1, Out: graph.None, Copy: &graph.Copy{Src: "/d/x", Dest: "/"}},
		{In: 2, From: 1, Out: 0, Copy: &graph.Copy{Src: "/d", Dest: "/"}},
	}}, []graph.Edge{{}, {V: local}})
	m, err := NewCacheMap(v, SourcePin{})
	if err != nil || len(m.Inputs) != 1 {
		t.Fatalf("%+v, %v: scratch is no input", m, err)
	}
	in := m.Inputs[0]
	if in.In != 1 || in.Selector != digest.FromString("/d/x\x00/d") || len(in.Content) != 1 || in.Content[0].Path != "/d" {
		t.Errorf("what is copied: %+v", in)
	}
	changed := graph.New(&graph.File{Actions: []graph.Action{{In: 0, From: 0, Out: 0, Copy: &graph.Copy{Src: "/a", Dest: "/b"}}}}, []graph.Edge{{V: base}})
	if m, err = NewCacheMap(changed, SourcePin{}); err != nil || m.Inputs[0].Content != nil || m.Inputs[0].Selector != "" {
		t.Errorf("an input that is changed, too: %+v, %v", m, err)
	}
}

// BuildKit knows an input by the content of several of its files in an order of its own. Two ops that read the same files for
// different purposes must differ, though their digest in BuildKit is the same.
func TestCacheMapSaysWhatIsUsedWhere(t *testing.T) {
	local := graph.New(&graph.Local{Name: "context"}, nil)
	copies := func(sources ...string) *graph.Vertex {
		f := &graph.File{}
		for i, src := range sources {
			a := graph.Action{In: i, From: 1, Out: graph.None, Copy: &graph.Copy{Src: src, Dest: "/"}}
			if i > 0 {
				a.In = i + 1
			}
			if i == len(sources)-1 {
				a.Out = 0
			}
			f.Actions = append(f.Actions, a)
		}
		return graph.New(f, []graph.Edge{{}, {V: local}})
	}
	binds := func(sources ...string) *graph.Vertex {
		x := &graph.Exec{Args: []string{"true"}}
		for i, src := range sources {
			x.Mounts = append(x.Mounts, graph.Mount{
				Type: graph.MountBind, Target: "/" + string(rune('a'+i)), Source: src, Input: 0, Output: graph.None, ReadOnly: true,
			})
		}
		return graph.New(x, []graph.Edge{{V: local}})
	}
	for name, pair := range map[string][2]*graph.Vertex{
		"copies in another order":      {copies("/e/a", "/f/a"), copies("/f/a", "/e/a")},
		"another file below a source":  {copies("/f", "/f/a"), copies("/f", "/f/s/a")},
		"binds in another order":       {binds("/e", "/f"), binds("/f", "/e")},
		"another bind below a source":  {binds("/", "/e"), binds("/", "/f")},
		"one source twice, and others": {copies("/e/a", "/e/a", "/f/a"), copies("/e/a", "/f/a", "/f/a")},
	} {
		a, err := NewCacheMap(pair[0], SourcePin{})
		b, err2 := NewCacheMap(pair[1], SourcePin{})
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if a.Digest == b.Digest || a.BuildKit == "" || a.BuildKit == a.Digest {
			t.Errorf("%s: %+v and %+v", name, a, b)
		}
		if name != "one source twice, and others" && a.BuildKit != b.BuildKit {
			t.Errorf("%s: BuildKit would see %s and %s", name, a.BuildKit, b.BuildKit)
		}
	}
	for name, v := range map[string]*graph.Vertex{"one copy": copies("/e/a"), "the same twice": copies("/e/a", "/e/a"), "one bind": binds("/e")} {
		if m, err := NewCacheMap(v, SourcePin{}); err != nil || m.BuildKit != "" {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}
