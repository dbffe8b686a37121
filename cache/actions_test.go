package cache

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

// hub is a cache service of GitHub Actions with its blob storage: it knows what the client needs of the protocol.
type hub struct {
	mu      sync.Mutex
	url     string
	order   []string          // keys of finished entries, oldest first
	open    map[string]bool   // reserved
	data    map[string][]byte // by key
	refuse  []int             // statuses of the next requests
	methods map[string]int
}

func newHub(t *testing.T) *hub {
	h := &hub{open: map[string]bool{}, data: map[string][]byte{}, methods: map[string]int{}}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	h.url = srv.URL + "/"
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.refuse) > 0 {
		w.WriteHeader(h.refuse[0])
		h.refuse = h.refuse[1:]
		return
	}
	if key, ok := strings.CutPrefix(r.URL.Path, "/blob/"); ok {
		h.blob(w, r, key)
		return
	}
	method, ok := strings.CutPrefix(r.URL.Path, "/twirp/github.actions.results.api.v1.CacheService/")
	if !ok || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer "+actionsToken(time.Hour) || r.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	var in struct {
		Key     string   `json:"key"`
		Restore []string `json:"restore_keys"`
		Version string   `json:"version"`
		Size    int      `json:"size_bytes"`
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil || len(in.Version) != 64 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.methods[method]++
	h.call(w, method, in.Key, in.Restore, in.Size)
}

func (h *hub) call(w http.ResponseWriter, method, key string, restore []string, size int) {
	answer := map[string]any{"ok": true}
	switch method {
	case "CreateCacheEntry":
		if _, ok := h.data[key]; ok || h.open[key] {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"code":"already_exists","msg":"cache entry with the same key, version, and scope already exists"}`)
			return
		}
		h.open[key] = true
		answer["signed_upload_url"] = h.url + "blob/" + key2path(key) + "?sig=put"
	case "FinalizeCacheEntryUpload":
		if !h.open[key] || len(h.data[key]) != size {
			answer["ok"], answer["message"] = false, "no such upload"
			break
		}
		delete(h.open, key)
		h.order = append(h.order, key)
		answer["entry_id"] = "1"
	case "GetCacheEntryDownloadURL":
		found := ""
		for _, k := range h.order {
			if k == key || len(restore) > 0 && strings.HasPrefix(k, restore[0]) {
				found = k
			}
		}
		answer["ok"] = found != ""
		if found != "" {
			answer["matched_key"], answer["signed_download_url"] = found, h.url+"blob/"+key2path(found)+"?sig=get"
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func key2path(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func (h *hub) blob(w http.ResponseWriter, r *http.Request, path string) {
	w.Header().Set("X-Ms-Request-Id", "1") // which BuildKit relies on
	raw, _ := base64.RawURLEncoding.DecodeString(path)
	key := string(raw)
	switch {
	case r.Header.Get("Authorization") != "": // the token is not for the storage
		w.WriteHeader(http.StatusForbidden)
	case r.Method == http.MethodPut && r.URL.Query().Get("sig") == "put" && r.Header.Get("X-Ms-Blob-Type") == "BlockBlob" && h.open[key]:
		h.data[key], _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodGet && r.URL.Query().Get("sig") == "get":
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.data[key]))
	default:
		w.WriteHeader(http.StatusForbidden)
	}
}

// actionsToken is a token of a build of a branch that may read the main branch, too.
func actionsToken(valid time.Duration) string {
	until := time.Unix(1<<33, 0).Add(valid).Unix()
	if valid < 0 {
		until = 1000
	}
	body, _ := json.Marshal(map[string]any{"exp": until, "nbf": 0, "ac": `[{"Scope":"refs/heads/main","Permission":1},{"Scope":"refs/heads/x","Permission":3}]`})
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString(body) + ".c2ln"
}

func TestActions(t *testing.T) {
	h := newHub(t)
	spec := Spec{"gha", map[string]string{"url_v2": h.url, "token": actionsToken(time.Hour), "scope": "app", "timeout": "1m"}}
	a, err := newActions(spec, &Rules{})
	if err != nil {
		t.Fatal(err)
	}
	a.pause = 0
	h.refuse = []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusTooManyRequests, http.StatusTooManyRequests}
	if x, err := a.load(t.Context()); err != nil || len(x.records) != 0 {
		t.Fatalf("a cache that is not there: %+v, %v", x, err)
	}
	write := func() {
		t.Helper()
		c, layers := example()
		for i := range layers {
			if err := a.put(t.Context(), &layers[i], nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.finish(t.Context(), c, layers, &Export{}); err != nil {
			t.Fatal(err)
		}
	}
	write()
	// The keys are those of BuildKit.
	index := "index-app-1-" + digest.FromString("refs/heads/x").Encoded()[:8]
	blob := "buildkit-blob-1-" + digest.FromString("one").String()
	if string(h.data[blob]) != "one" || h.data[index+"#1"] == nil {
		t.Errorf("keys: %v", h.order)
	}
	// What is there is not written again; the index gets the next number, also where another export was abandoned.
	h.open[index+"#2"] = true
	write()
	if h.data[index+"#3"] == nil || len(h.order) != 4 {
		t.Errorf("keys: %v", h.order)
	}
	x, err := a.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chain := x.records[x.byDigest[digest.FromString("copy")][0]].results[0].chain
	r, err := chain[1].Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "wo" || !chain[0].Exists(t.Context()) {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := a.stat(t.Context(), digest.FromString("none")); diag.KindOf(err) != diag.NotFound {
		t.Errorf("%v", err)
	}
	// The index of the main branch is read, too, and other scopes are not.
	h.order = []string{blob, "index-app-1-" + digest.FromString("refs/heads/main").Encoded()[:8] + "#7"}
	h.data[h.order[1]] = h.data[index+"#1"]
	if x, err := a.load(t.Context()); err != nil || len(x.records) != 4 {
		t.Errorf("%+v, %v", x, err)
	}
	spec.Attrs["scope"] = "other"
	if a, err := newActions(spec, &Rules{}); err != nil {
		t.Error(err)
	} else if x, err := a.load(t.Context()); err != nil || len(x.records) != 0 {
		t.Errorf("another scope: %+v, %v", x, err)
	}
}

func TestActionsOptions(t *testing.T) {
	token := actionsToken(time.Hour)
	for want, attrs := range map[string]map[string]string{
		"token not set":     {"url_v2": "http://x"},
		"url not set":       {"token": token},
		"no longer served":  {"token": token, "url": "http://x"},
		"failed to parse":   {"token": token, "url_v2": "http://x", "timeout": "soon"},
		"no JWT":            {"token": "x.y.z", "url_v2": "http://x"},
		"cache token expir": {"token": actionsToken(-1), "url_v2": "http://x"},
	} {
		if _, err := newActions(Spec{"gha", attrs}, &Rules{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", attrs, err)
		}
		if _, err := NewExport(Spec{"gha", attrs}, Env{}); err == nil || !strings.Contains(err.Error(), "failed to configure gha cache exporter") {
			t.Errorf("%v: %v", attrs, err)
		}
	}
	if a, err := newActions(Spec{"gha", map[string]string{"token": token, "url": "https://results-receiver.actions.githubusercontent.com/"}}, &Rules{}); err != nil || a.scope != "buildkit" {
		t.Errorf("%+v, %v", a, err)
	}
}

// An operator who requires verified caches gets none that is not.
func TestActionsThatMustBeVerified(t *testing.T) {
	h := newHub(t)
	spec := Spec{Type: "gha", Attrs: map[string]string{"url_v2": h.url, "token": actionsToken(time.Hour)}}
	if _, _, err := importer(spec, Env{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := importer(spec, Env{Rules: Rules{RefuseActions: true}}); diag.KindOf(err) != diag.Denied {
		t.Errorf("error %v", err)
	}
}
