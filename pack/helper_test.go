package pack

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	reg "github.com/google/go-containerregistry/pkg/registry"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
)

var epoch = time.Unix(0, 0)

// server is a registry that counts what it receives.
type server struct {
	host string
	mu   sync.Mutex
	puts []string // paths of blobs that were uploaded
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	inner := reg.New(reg.Logger(log.New(io.Discard, "", 0)))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
			s.mu.Lock()
			s.puts = append(s.puts, r.URL.Query().Get("digest"))
			s.mu.Unlock()
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

// uploaded returns the digests that came since the last call.
func (s *server) uploaded() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.puts
	s.puts = nil
	return out
}

func workspace(t *testing.T, opt Options) *Workspace {
	t.Helper()
	if opt.Registry == nil {
		opt.Registry = registry.New(registry.Config{})
		t.Cleanup(opt.Registry.Close)
	}
	opt.Temp = t.TempDir()
	w := New(opt)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(opt.Temp); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return w
}

// dirLayer makes a layer of files: path -> content.
func dirLayer(t *testing.T, w *Workspace, name string, files map[string]string) *Layer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for p, text := range files {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	src, err := layer.FromPath(dir, layer.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Keep(src.Close)
	return NewLayer(name, src.Entries, layer.TarOptions{Epoch: &epoch})
}

// sample is an image of three layers, the third being the first again.
func sample(t *testing.T, w *Workspace) *Image {
	t.Helper()
	one := dirLayer(t, w, "one", map[string]string{"etc/a": "a", "etc/b": "b", "layer-order": "a"})
	two := dirLayer(t, w, "two", map[string]string{"etc/b": "B", "layer-order": "ab", "usr/share/big": strings.Repeat("big ", 10_000)})
	return Assemble(nil, []*Layer{one, two, one}, Change{Created: &epoch, Env: []string{"A=1"}, Cmd: []string{"/bin/x"}, User: "1000:1000", Labels: map[string]string{"l": "v"}})
}

func write(t *testing.T, w *Workspace, im *Image, target Target) *Receipt {
	t.Helper()
	r, err := w.Write(t.Context(), []*Image{im}, target)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t *testing.T, w *Workspace, name string) *Image {
	t.Helper()
	s, err := w.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	im, err := s.Image(t.Context(), thisMachine())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// shows returns the files of an image: path -> content, or what it is.
func shows(t *testing.T, w *Workspace, im *Image) map[string]string {
	t.Helper()
	var b bytes.Buffer
	if err := w.Flatten(t.Context(), im, &b); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			out[h.Name] = string(text) + h.Linkname
		}
	}
}

func wantKind(t *testing.T, err error, kind diag.Kind, word string) {
	t.Helper()
	if err == nil || diag.KindOf(err) != kind || !strings.Contains(err.Error(), word) {
		t.Errorf("got %v; want %s with %q", err, kind, word)
	}
}

func diffs(im *Image) []string {
	var out []string
	for _, l := range im.Layers {
		out = append(out, l.diffID.String())
	}
	return out
}

// run runs a tool.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func needs(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}
