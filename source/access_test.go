package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// gate is a registry whose repositories below private/ need a password, and whose repositories below evil/ have no blobs.
type gate struct {
	password atomic.Value // string
	asked    atomic.Int64 // requests below private/
	closed   atomic.Bool  // nothing is answered
	lacks    atomic.Value // string: the blobs that the repositories below evil/ do not have
}

func (f *fixture) gate() *gate {
	g := &gate{}
	g.password.Store("secret")
	g.lacks.Store("sha256:")
	serve := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		_, pass, _ := r.BasicAuth()
		switch {
		case g.closed.Load():
			http.Error(w, "closed", http.StatusNotFound)
			return
		case strings.Contains(r.URL.Path, "/private/") && r.Method != http.MethodPut && r.Method != http.MethodPost && r.Method != http.MethodPatch:
			g.asked.Add(1)
			if pass != g.password.Load() {
				w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		case strings.Contains(r.URL.Path, "/evil/") && strings.Contains(r.URL.Path, "/blobs/"+g.lacks.Load().(string)) && r.Method == http.MethodGet:
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&serve)
	return g
}

// of returns a client's view of images; pass is its password at all registries.
func (f *fixture) of(c session.Client, pass string) *Images {
	hold := f.store.Hold()
	web := f.client.For(func(context.Context, string) (session.Credential, error) {
		if pass == "" {
			return session.Credential{}, nil
		}
		return session.Credential{Username: "u", Password: pass}, nil
	})
	im := NewPuller(f.store).Images(Env{Store: f.store, Hold: hold, Registry: web, Client: c, Session: client{}})
	f.Cleanup(func() { im.Close(); hold.Release() })
	return im
}

var privateTar = makeTar(file{name: "secret", body: "top secret"})

func pull(t *testing.T, im *Images, ref string, mode graph.ResolveMode) error {
	t.Helper()
	op := &graph.Image{Ref: ref, Mode: mode}
	if _, err := im.Pin(t.Context(), op, amd64); err != nil {
		return err
	}
	_, _, err := im.Fetch(t.Context(), op, amd64, "")
	return err
}

func TestPrivateImageOfAnotherClientNeedsTheLogin(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, privateTar)
	f.push("private/app:1", b)
	g := f.gate()
	name := f.host + "/private/app:1"
	pinned := f.host + "/private/app@" + b.desc.Digest.String()
	alice, mallory := session.Client{Name: "user 1"}, session.Client{Name: "user 2"}
	for _, ref := range []string{name, pinned} {
		if err := pull(t, f.of(alice, "secret"), ref, graph.ResolveDefault); err != nil {
			t.Fatal(err)
		}
	}
	for _, pass := range []string{"", "wrong"} {
		for _, ref := range []string{name, pinned} {
			for _, mode := range []graph.ResolveMode{graph.ResolveDefault, graph.ResolveLocal, graph.ResolvePull} {
				if err := pull(t, f.of(mallory, pass), ref, mode); err == nil {
					t.Errorf("%s with the password %q is served in mode %v", ref, pass, mode)
				}
			}
		}
	}
	blob := &graph.Blob{Ref: f.host + "/private/app@" + b.descs[0].Digest.String()}
	if _, err := f.of(mallory, "").PinBlob(t.Context(), blob); err == nil {
		t.Error("a layer is served by its digest")
	}
	if _, err := f.of(alice, "secret").PinBlob(t.Context(), blob); err != nil {
		t.Error(err)
	}
	// The same login goes on working without the registry, in another process too; others do not begin to.
	g.closed.Store(true)
	for _, ref := range []string{name, pinned} {
		if err := pull(t, f.of(alice, "secret"), ref, graph.ResolveDefault); err != nil {
			t.Errorf("offline: %v", err)
		}
		if err := pull(t, f.of(session.Client{Owner: true}, ""), ref, graph.ResolveDefault); err != nil {
			t.Errorf("offline, for the engine's own user: %v", err)
		}
		if err := pull(t, f.of(mallory, ""), ref, graph.ResolveDefault); err == nil {
			t.Error("offline, it is served to everybody")
		}
	}
	if raw, err := os.ReadFile(filepath.Join(f.store.Root(), "names.key")); err != nil || len(raw) != 32 {
		t.Errorf("the key of names: %d bytes, %v", len(raw), err)
	}
	grep(t, f.store, "secret\"") // as it would stand in JSON
}

func TestRevokedLoginIsNotAskedForAnotherDigest(t *testing.T) {
	f := setup(t)
	old := build(amd64, true, privateTar)
	f.push("private/app:1", old)
	g := f.gate()
	alice := session.Client{Name: "user 1"}
	if err := pull(t, f.of(alice, "secret"), f.host+"/private/app:1", graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	g.password.Store("changed")
	if err := pull(t, f.of(alice, "other"), f.host+"/private/app:1", graph.ResolveDefault); err == nil {
		t.Error("a login that never could read it gets the image")
	}
}

// nothing has no blobs.
type nothing struct{}

func (nothing) Blob(context.Context, image.Descriptor, int64) (io.ReadCloser, error) {
	return nil, diag.Errorf(diag.NotFound, "it has no blobs")
}

func server(t *testing.T, f http.HandlerFunc) (url string) {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.URL
}

// An attacker's registry serves a manifest that names the layers, or the configuration, of somebody else's image by their digests.
func TestEvilRegistryNamesPrivateLayers(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, privateTar)
	f.push("private/app:1", b)
	f.push("evil/app:1", b)
	g := f.gate()
	if err := pull(t, f.of(session.Client{Name: "user 1"}, "secret"), f.host+"/private/app:1", graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	mallory := session.Client{Name: "user 2"}
	for _, lacks := range []string{"sha256:", b.descs[0].Digest.String()} { // all, or the layer alone
		g.lacks.Store(lacks)
		if _, err := f.of(mallory, "").Pin(t.Context(), &graph.Image{Ref: f.host + "/evil/app:1"}, amd64); err == nil {
			t.Error("the chain id of layers that the registry does not have becomes a key")
		}
		if _, _, err := f.of(mallory, "").Fetch(t.Context(), &graph.Image{Ref: f.host + "/evil/app:1"}, amd64, ""); err == nil {
			t.Error("layers that the registry does not have are served")
		}
	}
	blob := &graph.Blob{Ref: f.host + "/evil/app@" + b.descs[0].Digest.String()}
	if _, err := f.of(mallory, "").FetchBlob(t.Context(), blob, ""); err == nil {
		t.Error("a blob that the registry does not have is served")
	}
	// A registry that has the layers may be used, and they are read from it once.
	f.push("honest/app:1", b)
	if err := pull(t, f.of(mallory, ""), f.host+"/honest/app:1", graph.ResolvePull); err != nil {
		t.Fatal(err)
	}
	before := f.gets.Load()
	if err := pull(t, f.of(mallory, ""), f.host+"/honest/app:1", graph.ResolvePull); err != nil || f.gets.Load() != before {
		t.Errorf("%d blobs are read again, %v", f.gets.Load()-before, err)
	}
}

// The diff_ids of a configuration are claims: those of somebody else's image, with other blobs, must not become its key.
func TestUnverifiedDiffIDsAreNoKey(t *testing.T) {
	f := setup(t)
	victim := build(amd64, true, privateTar)
	f.push("private/app:1", victim)
	f.gate()
	if err := pull(t, f.of(session.Client{Name: "user 1"}, "secret"), f.host+"/private/app:1", graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	liar := build(amd64, true, makeTar(file{name: "mine", body: "mine"}))
	liar.diffs = victim.diffs
	liar.finish(amd64)
	f.push("public/liar:1", liar)
	_, err := f.of(session.Client{Name: "user 2"}, "").Pin(t.Context(), &graph.Image{Ref: f.host + "/public/liar:1"}, amd64)
	wantKind(t, err, diag.Invalid, "failed to verify layer")
}

// A layout or a cache of a client may name digests of layers that only the store has.
func TestClientsFilesNamePrivateLayers(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, privateTar)
	f.push("private/app:1", b)
	f.gate()
	if err := pull(t, f.of(session.Client{Name: "user 1"}, "secret"), f.host+"/private/app:1", graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write("index.json", []byte(layoutIndex(b.desc)))
	write(blobName(b.manifest), b.manifest)
	write(blobName(b.config), b.config)
	mallory := f.of(session.Client{Name: "user 2"}, "")
	mallory.env.Session = client{dirs: map[string]string{"ctx": dir}}
	op := &graph.OCILayout{Ref: "ctx@" + b.desc.Digest.String(), Store: "ctx"}
	if _, err := mallory.PinLayout(t.Context(), op, amd64); err == nil {
		t.Error("the chain id of layers that the layout does not have becomes a key")
	}
	if _, err := mallory.FetchLayout(t.Context(), op, amd64, ""); err == nil {
		t.Error("layers that the layout does not have are served")
	}
	chain := Chain{Name: "step", Place: "cache evil", DiffIDs: b.diffs, Blobs: b.descs, Open: opener{blobs{nothing{}, session.Client{}}.open, ""}.f}
	if _, err := mallory.FetchChain(t.Context(), chain, ""); err == nil {
		t.Error("layers that the cache does not have are served")
	}
	for i, l := range b.layers {
		write("blobs/sha256/"+b.descs[i].Digest.Encoded(), l)
	}
	again := f.of(session.Client{Name: "user 2"}, "")
	again.env.Session = mallory.env.Session
	layers, err := again.FetchLayout(t.Context(), op, amd64, "")
	if err != nil || f.read(layers, "secret") != "top secret" {
		t.Errorf("a layout that has the layers: %v", err)
	}
}

func TestTenantsDoNotShareNamesOfImages(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, privateTar)
	f.push("library/app:1", b)
	f.gate()
	name := f.host + "/library/app:1"
	one, two := session.Client{Tenant: "user 1", Name: "user 1"}, session.Client{Tenant: "user 2", Name: "user 2"}
	if err := pull(t, f.of(one, ""), name, graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	if err := pull(t, f.of(one, ""), name, graph.ResolveLocal); err != nil {
		t.Error(err)
	}
	if err := pull(t, f.of(two, ""), name, graph.ResolveLocal); diag.KindOf(err) != diag.NotFound {
		t.Errorf("another tenant: %v", err)
	}
	if err := pull(t, f.of(session.Client{Owner: true}, ""), name, graph.ResolveLocal); diag.KindOf(err) != diag.NotFound {
		t.Errorf("the engine's own user, whose name it is not: %v", err)
	}
}

func TestFileByChecksumNeedsTheLogin(t *testing.T) {
	f := setup(t)
	var asked atomic.Int64
	w := server(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer token" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write([]byte("private file"))
	})
	op := &graph.HTTP{URL: w + "/file", Checksum: digest.FromString("private file")}
	as := func(c session.Client, token string) (*HTTP, error) {
		env := f.env()
		env.Client = c
		s := client{secrets: map[string]string{}}
		if token != "" {
			s.secrets["HTTP_AUTH_TOKEN_127.0.0.1"] = token
		}
		env.Session = s
		h := NewHTTP(env)
		if _, err := h.Pin(t.Context(), op, ""); err != nil {
			return h, err
		}
		_, err := h.Fetch(t.Context(), op, "")
		return h, err
	}
	alice, mallory := session.Client{Name: "user 1"}, session.Client{Name: "user 2"}
	if _, err := as(alice, "token"); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", "wrong"} {
		h, err := as(mallory, token)
		wantKind(t, err, diag.Denied)
		if _, err := h.Fetch(t.Context(), op, ""); err == nil {
			t.Error("the file is served")
		}
	}
	before := asked.Load()
	if _, err := as(alice, "token"); err != nil || asked.Load() != before {
		t.Errorf("the same login: %d requests, %v", asked.Load()-before, err)
	}
	if _, err := as(session.Client{Owner: true}, ""); err != nil || asked.Load() != before {
		t.Errorf("the engine's own user: %d requests, %v", asked.Load()-before, err)
	}
	if _, err := as(session.Client{Name: "user 3"}, "token"); err != nil {
		t.Error(err)
	}
}

// A download of another client that broke off must not be completed by who has its end alone.
func TestPartOfAPrivateBlobIsNotResumedElsewhere(t *testing.T) {
	f := setup(t)
	b := build(amd64, false, privateTar)
	w, err := f.store.NewBlob(t.Context(), b.descs[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(privateTar[:1024]); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	f.push("evil/app:1", b)
	var ranges atomic.Int64
	serve := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&serve)
	if err := pull(t, f.of(session.Client{Name: "user 2"}, ""), f.host+"/evil/app:1", graph.ResolveDefault); err != nil {
		t.Fatal(err)
	}
	if ranges.Load() != 0 {
		t.Error("only the end was asked for")
	}
}

// A client's registry begins to send layers and never ends. Neither these layers, nor as many others as one client may have in work,
// keep another client from its own.
func TestAttackRegistryThatNeverEnds(t *testing.T) {
	f := setup(t)
	public := build(amd64, true, makeTar(file{name: "public", body: "public"}))
	f.push("public/app:1", public)
	f.push("evil/app:1", public)
	var others []string
	for i := range parallelLayers {
		name := fmt.Sprintf("evil/other%d:1", i)
		f.push(name, build(amd64, true, makeTar(file{name: "n", body: name})))
		others = append(others, name)
	}
	stuck := make(chan struct{}, 100)
	serve := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		if at := strings.Index(r.URL.Path, "/blobs/"); strings.Contains(r.URL.Path, "/evil/") && at > 0 && r.Method == http.MethodGet && rec.Body.Len() > 0 && rec.Body.Bytes()[0] != '{' {
			w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
			_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			w.(http.Flusher).Flush()
			stuck <- struct{}{}
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&serve)
	p := NewPuller(f.store)
	of := func(user string, most time.Duration) (*Images, context.Context, func()) {
		hold := f.store.Hold()
		ctx, cancel := context.WithTimeout(store.WithOwner(t.Context(), user), most)
		im := p.Images(Env{Store: f.store, Hold: hold, Registry: f.client, Client: session.Client{Tenant: user, Name: user}, Session: client{}})
		return im, ctx, func() { cancel(); im.Close(); hold.Release() }
	}
	fetch := func(im *Images, ctx context.Context, name string) error {
		_, _, err := im.Fetch(ctx, &graph.Image{Ref: f.host + "/" + name}, amd64, "")
		return err
	}
	for what, names := range map[string][]string{"the same layer": {"evil/app:1"}, "all places": others} {
		mallory, theirs, end := of("user 1", time.Hour)
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() { _ = fetch(mallory, theirs, name) })
		}
		for range names {
			<-stuck
		}
		alice, ctx, done := of("user 2", time.Minute)
		if err := fetch(alice, ctx, "public/app:1"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		done()
		end()
		wg.Wait()
		if _, err := f.store.GC(t.Context(), store.Policy{All: true}); err != nil {
			t.Fatal(err)
		}
	}
}
