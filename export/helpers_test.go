package export

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	reg "github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
	"golang.org/x/sys/unix"
)

var (
	amd64 = graph.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = graph.Platform{OS: "linux", Architecture: "arm64"}
	epoch = time.Unix(1_700_000_000, 0).UTC()
)

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{Log: slog.New(slog.DiscardHandler), MaxBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// addLayer commits a layer with files: "dir/" makes a directory, "name -> target" a symlink, all else a file.
func addLayer(t *testing.T, s *store.Store, files map[string]string) store.LayerID {
	t.Helper()
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mtime := time.Unix(1_750_000_000, 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		p := filepath.Join(d.Dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		if strings.HasSuffix(name, "/") {
			must(os.MkdirAll(p, 0o755))
		} else if target, ok := strings.CutPrefix(content, "-> "); ok {
			must(os.Symlink(target, p))
		} else {
			must(os.WriteFile(p, []byte(content), 0o644))
		}
	}
	must(filepath.WalkDir(d.Dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		t := []unix.Timespec{{Sec: mtime.Unix()}, {Sec: mtime.Unix()}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, t, unix.AT_SYMLINK_NOFOLLOW)
	}))
	must(s.Update(t.Context(), func(b *store.Batch) error {
		b.Layer(d, store.LayerInfo{Created: time.Unix(1_760_000_000, 0)})
		return nil
	}))
	return d.ID
}

func testConfig(p graph.Platform, rows ...string) *image.Config {
	c := &image.Config{OS: p.OS, Architecture: p.Architecture}
	c.Config.Cmd = []string{"/bin/sh"}
	c.Config.Env = []string{"PATH=/bin"}
	for _, r := range rows {
		name, empty := strings.CutPrefix(r, "#")
		c.History = append(c.History, image.History{CreatedBy: name, EmptyLayer: empty})
	}
	return c
}

// twoLayers is a set of one image with two layers of its own.
func twoLayers(t *testing.T, s *store.Store) *Set {
	t.Helper()
	a := addLayer(t, s, map[string]string{"etc/passwd": "root:x:0:0::/:/bin/sh\n", "bin/": "", "data": strings.Repeat("layer one\n", 5000)})
	b := addLayer(t, s, map[string]string{"app/main": strings.Repeat("layer two\n", 3000), "app/link": "-> main"})
	st := tree.NewStack(s, []store.LayerID{a, b})
	t.Cleanup(st.Release)
	return &Set{Images: []Image{{Platform: amd64, Config: testConfig(amd64, "ADD rootfs /", "#ENV A=1", "COPY app /app"), Tree: st, Epoch: &epoch}}}
}

// client is a session whose only destination is a directory or a buffer.
type client struct {
	session.Session
	dir    string
	buf    bytes.Buffer
	closed bool
}

func (c *client) Output(context.Context, string) (session.Output, error) {
	if c.dir != "" {
		return session.Output{Dir: c.dir}, nil
	}
	return session.Output{File: (*clientFile)(c)}, nil
}

type clientFile client

func (f *clientFile) Write(b []byte) (int, error) { return f.buf.Write(b) }
func (f *clientFile) Close() error                { f.closed = true; return nil }

func testEnv(s *store.Store, c *client) *Env {
	return &Env{Store: s, Packer: NewPacker(s), Registry: reg.New(reg.Config{}), Session: c}
}

func output(typ string, attrs ...string) Output {
	m := map[string]string{}
	for _, a := range attrs {
		k, v, _ := strings.Cut(a, "=")
		m[k] = v
	}
	return Output{Type: typ, Attrs: m}
}

// export runs one exporter.
func export(t *testing.T, env *Env, set *Set, o Output) *Receipt {
	t.Helper()
	x, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), env, set, []Exporter{x})
	if err != nil {
		t.Fatal(err)
	}
	return r[0]
}

// testRegistry serves a registry and returns its host.
func testRegistry(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(gcr.New(gcr.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func writeTemp(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sprint(v any) string { return fmt.Sprintf("%v", v) }
