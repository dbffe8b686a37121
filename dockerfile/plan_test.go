package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fake is a registry without a network: an image exists if its name does not contain "missing".
type fake struct {
	mu     sync.Mutex
	asked  []string
	images map[string]*image.Config // by full reference
	files  map[string]string        // of sources, by "NAME:/path"
}

func (f *fake) Image(_ context.Context, ref string, p graph.Platform, _ graph.ResolveMode) (Resolved, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, ref)
	if strings.Contains(ref, "missing") || strings.Contains(ref, "alpin:") {
		return Resolved{}, diag.Errorf(diag.NotFound, "%s was not found in docker.io", strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/"), "library/"))
	}
	if c, ok := f.images[ref]; ok {
		return Resolved{Digest: testDigest, Config: c.Clone()}, nil
	}
	return Resolved{Digest: testDigest, Config: baseConfig(p)}, nil
}

const testDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func baseConfig(p graph.Platform) *image.Config {
	c := &image.Config{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	now := time.Unix(1700000000, 0)
	c.Created = &now
	c.Config.Env = []string{"PATH=/usr/bin:/bin", "BASE=yes"}
	c.Config.Cmd = []string{"sh"}
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = []graph.Digest{testDigest}
	c.History = []image.History{{CreatedBy: "ADD rootfs.tar /"}}
	return c
}

func (f *fake) OCILayout(_ context.Context, ref string, p graph.Platform) (Resolved, error) {
	return Resolved{Config: baseConfig(p)}, nil
}

func (f *fake) Input(_ context.Context, name string) (graph.Edge, *image.Config, error) {
	return graph.Edge{V: graph.New(&graph.Local{Name: "input-" + name}, nil)}, nil, nil
}

func (f *fake) ReadFile(_ context.Context, from graph.Edge, path string, limit int64) ([]byte, error) {
	name := from.V.Op.Kind()
	if l, ok := from.V.Op.(*graph.Local); ok {
		name = l.Name
	}
	s, ok := f.files[name+":"+path]
	if !ok {
		return nil, diag.Errorf(diag.NotFound, "%s: no such file", path)
	}
	return []byte(s)[:min(len(s), int(limit))], nil
}

func (f *fake) Time(context.Context, graph.Edge) (time.Time, error) {
	return time.Unix(1600000000, 0), nil
}

var amd64 = graph.Platform{OS: "linux", Architecture: "amd64"}

// newFake knows the images that the golden tests use besides those that it makes up.
func newFake() *fake {
	onbuild := baseConfig(amd64)
	onbuild.Config.OnBuild = []string{"ARG VERSION=1", "COPY --from=tools /bin/tool /bin/", "RUN tool $VERSION"}
	lived := baseConfig(amd64)
	lived.Config.User, lived.Config.WorkingDir, lived.Config.Shell = "app", "/srv", []string{"/bin/bash", "-ec"}
	lived.Config.Labels = map[string]string{"a": "1"}
	lived.Config.Entrypoint = []string{"/entry"}
	bare := baseConfig(amd64)
	bare.RootFS.DiffIDs, bare.History, bare.Config.Env = nil, nil, nil
	other := baseConfig(graph.Platform{OS: "linux", Architecture: "s390x"})
	trigger := func(text string) *image.Config {
		c := baseConfig(amd64)
		c.Config.OnBuild = []string{text}
		return c
	}
	return &fake{images: map[string]*image.Config{
		"docker.io/library/trigger-from:latest":   trigger("FROM x"),
		"docker.io/library/trigger-two:latest":    trigger("RUN a\nRUN b"),
		"docker.io/library/trigger-syntax:latest": trigger("# a\n# check=skip=all\nRNU a"),
		"docker.io/library/onbuild:latest":        onbuild,
		"docker.io/library/lived:latest":          lived,
		"docker.io/library/bare:latest":           bare,
		"docker.io/library/other:latest":          other,
	}, files: map[string]string{
		"docs:/.dockerignore": "*.tmp\n",
		"layers:/image.json": `{"layers":[
			{"name":"lib","key":"k","digest":"` + testDigest + `","diff_id":"` + testDigest + `","size":1,"history":{"created_by":"OUTPUT lib"}},
			{"digest":"` + testDigest + `","diff_id":"` + testDigest + `","size":1,"history":{"created_by":"mine"}}],
			"config":{"architecture":"","os":"","config":{"Env":["GIVEN=1","BASE=no"],"Cmd":["given"],"Labels":{"x":"y"}},"rootfs":{"type":"","diff_ids":null}},
			"annotations":{"note":"hello"}}`,
	}}
}

// request reads the settings of a golden test: lines "#! name value" at the top of the file.
func request(t *testing.T, name string, data []byte) Request {
	req := Request{BuildPlatform: amd64, BuildArgs: map[string]string{}, Contexts: map[string]string{}, Labels: map[string]string{}}
	for bytes.HasPrefix(data, []byte("#! ")) {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data = rest
		key, value, _ := strings.Cut(string(line[3:]), " ")
		k, v, _ := strings.Cut(value, "=")
		switch key {
		case "arg":
			req.BuildArgs[k] = v
		case "label":
			req.Labels[k] = v
		case "context":
			req.Contexts[k] = v
		case "target":
			req.Target = value
		case "platform":
			p, err := graph.ParsePlatform(value)
			if err != nil {
				t.Fatal(err)
			}
			req.Platforms = append(req.Platforms, p)
		case "ignore":
			req.Ignore = &diag.Source{Name: ".dockerignore", Data: []byte(strings.ReplaceAll(value, " ", "\n"))}
		case "url":
			req.ContextURL = value
		case "subdir":
			req.ContextSubdir = value
		case "no-cache":
			req.NoCache = true
		case "no-cache-filter":
			req.NoCacheFilter = append(req.NoCacheFilter, value)
		case "network":
			req.Network = graph.Network(value)
		case "squash":
			req.Squash = true
		case "output-layers":
			req.OutputLayers = append(req.OutputLayers, value)
		case "runnable":
			p, _ := graph.ParsePlatform(value)
			req.Runnable = append(req.Runnable, p)
		default:
			t.Fatalf("%s: unknown setting %q", name, key)
		}
	}
	req.Source = &diag.Source{Name: "Dockerfile", Data: data}
	return req
}

// TestGolden plans every Dockerfile of testdata and compares the graph, the configuration and the warnings, or the
// error, with the file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.dockerfile")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".dockerfile")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := Plan(t.Context(), request(t, name, data), newFake())
			var out strings.Builder
			if err != nil {
				var d *diag.Error
				if !errors.As(err, &d) {
					t.Errorf("error %v is no diag.Error", err)
				}
				diag.Render(&out, err)
			} else {
				renderPlan(&out, plan)
			}
			golden(t, strings.TrimSuffix(file, ".dockerfile")+".golden", out.String())
			if strings.HasPrefix(name, "error-") != (err != nil) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update if this is meant)\n--- want\n%s\n--- got\n%s", file, want, got)
	}
}

// renderPlan writes vertices in the order of the work, numbered, then the configuration without what is empty.
func renderPlan(w *strings.Builder, plan *image.Plan) {
	for _, t := range plan.Targets {
		fmt.Fprintf(w, "target %s\n", t.ID)
		num := map[*graph.Vertex]int{}
		graph.Walk([]graph.Edge{t.Root}, func(v *graph.Vertex) {
			num[v] = len(num) + 1
			var in []string
			for _, e := range v.In {
				if e.V == nil {
					in = append(in, "scratch")
				} else {
					in = append(in, fmt.Sprintf("%d", num[e.V]))
				}
			}
			fmt.Fprintf(w, "%d. %s [%s]", num[v], v.Op.Kind(), strings.Join(in, " "))
			if v.Platform.OS != "" {
				fmt.Fprintf(w, " on %s", graph.FormatPlatform(v.Platform))
			}
			if v.NoCache {
				fmt.Fprint(w, " no-cache")
			}
			if len(v.At) > 0 {
				fmt.Fprintf(w, " line %d", v.At[0].First)
			}
			fmt.Fprintf(w, "\n   %s\n", v.Name)
			fmt.Fprintf(w, "   %s\n", plain(v.Op))
			if x, ok := v.Op.(*graph.Exec); ok && x.Proxy != nil {
				fmt.Fprintf(w, "   proxy %s\n", plain(x.Proxy))
			}
			for i := range v.In {
				if s := v.Op.Uses(i); s != nil {
					fmt.Fprintf(w, "   uses %d: %s\n", num[v.In[i].V], plain(s))
				}
			}
		})
		if t.Root.IsScratch() {
			fmt.Fprintln(w, "empty tree")
		}
		if t.Base != nil {
			fmt.Fprintf(w, "base %s\n", t.Base.Name)
		}
		cfg := t.Config.Clone()
		history := cfg.History
		cfg.History = nil
		fmt.Fprintf(w, "config %s\n", plain(cfg))
		for _, h := range history {
			layer := "layer"
			if h.EmptyLayer {
				layer = "empty"
			}
			created := ""
			if h.Created != nil {
				created = fmt.Sprintf(" @%d", h.Created.Unix())
			}
			fmt.Fprintf(w, "%s%s %q\n", layer, created, h.CreatedBy)
		}
	}
	renderWarnings(w, plan.Warnings)
}

func renderWarnings(w *strings.Builder, ws []diag.Warning) {
	for _, x := range ws {
		at := ""
		if len(x.At) > 0 {
			at = fmt.Sprintf(" line %d", x.At[0].First)
		}
		detail := ""
		if x.Rule == "" && len(x.Detail) > 0 {
			detail = " (" + strings.Join(x.Detail, "; ") + ")"
		}
		fmt.Fprintf(w, "warning%s %s: %s%s\n", at, x.Rule, x.Msg, detail)
	}
}

func plain(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.TrimSpace(b.String()), testDigest, "sha256:aa")
}
