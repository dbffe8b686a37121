package cache

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// actions is a cache in the cache service of GitHub Actions, version 2 of its protocol: a Twirp service that gives signed URLs of
// Azure's blob storage. Entries are written once; they are found by the beginning of their key, the youngest first. Keys are those of
// BuildKit, so that both read each other's.
// Source: the toolkit's packages/cache; github.com/tonistiigi/go-actions-cache for keys and versions.
type actions struct {
	service string // URL of the service
	token   string
	scope   string         // of the client: caches of one repository do not mix
	scopes  []actionsScope // of the token
	timeout time.Duration  // for one request, with all its tries
	pause   time.Duration  // before an index is tried again that another export has reserved
	client  *http.Client
}

// actionsScope is a branch, and what the token may do with the entries of its builds.
type actionsScope struct {
	Scope      string
	Permission int // bits: 1 = read, 2 = write
}

var (
	_ blobs = (*actions)(nil)
	_ place = (*actions)(nil)
)

// actionsVersion stands for how entries are made, in the service's eyes: all that BuildKit and Strata make are alike.
var actionsVersion = digest.FromString("|go-actionscache-1.0").Encoded()

func newActions(s Spec, rules *Rules) (*actions, error) {
	a := &actions{token: s.Attrs["token"], scope: s.attr("scope", "", "buildkit"), timeout: 10 * time.Minute, pause: 2 * time.Second, client: rules.client()}
	url := s.Attrs["url_v2"]
	if url == "" && (s.Attrs["version"] == "2" || strings.Contains(s.Attrs["url"], "results-receiver.actions.githubusercontent.com")) {
		url = s.Attrs["url"]
	}
	var err error
	switch {
	case a.token == "":
		return nil, diag.Errorf(diag.Invalid, "token not set for github actions cache").WithHint("set token, or $ACTIONS_RUNTIME_TOKEN where strata runs")
	case s.Attrs["version"] == "1" || url == "" && s.Attrs["url"] != "":
		return nil, diag.Errorf(diag.Unsupported, "version 1 of the github actions cache is no longer served by GitHub").WithHint("set url_v2, or $ACTIONS_RESULTS_URL where strata runs")
	case url == "":
		return nil, diag.Errorf(diag.Invalid, "url not set for github actions cache").WithHint("set url_v2, or $ACTIONS_RESULTS_URL where strata runs")
	}
	if v, ok := s.Attrs["timeout"]; ok {
		if a.timeout, err = time.ParseDuration(v); err != nil || a.timeout <= 0 {
			return nil, diag.Errorf(diag.Invalid, "failed to parse timeout for github actions cache: %s", v)
		}
	}
	a.service = strings.TrimRight(url, "/") + "/twirp/github.actions.results.api.v1.CacheService/"
	a.scopes, err = tokenScopes(a.token)
	return a, err
}

// tokenScopes reads what a token is good for. That it is genuine is the service's affair.
func tokenScopes(token string) ([]actionsScope, error) {
	parts := strings.Split(token, ".")
	bad := diag.Errorf(diag.Invalid, "the token of the github actions cache is no JWT with access controls")
	if len(parts) != 3 {
		return nil, bad
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil, bad
	}
	var claims struct {
		Access string  `json:"ac"`
		Until  float64 `json:"exp"` // seconds since 1970
	}
	var scopes []actionsScope
	if strictjson.Unmarshal(raw, &claims) != nil || strictjson.Unmarshal([]byte(claims.Access), &scopes) != nil {
		return nil, bad
	}
	if end := time.Unix(int64(claims.Until), 0); claims.Until != 0 && time.Now().After(end) {
		return nil, diag.Errorf(diag.Denied, "cache token expired at %v", end.UTC())
	}
	return scopes, nil
}

func (a *actions) id() string { return "gha:" + a.scope }

func (a *actions) name() string { return "exporting to GitHub Actions Cache" }

func blobKey(d graph.Digest) string { return "buildkit-blob-1-" + d.String() }

// indexKey begins the keys of the configurations that are written by builds of a branch.
func (a *actions) indexKey(scope string) string {
	return "index-" + a.scope + "-1-" + digest.FromString(scope).Encoded()[:8] + "#"
}

// call calls a method of the service. An entry that exists already is diag.Conflict.
func (a *actions) call(ctx context.Context, method string, in map[string]any, out any) error {
	in["version"] = actionsVersion
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.send(ctx, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.service+method, bytes.NewReader(body))
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+a.token)
			req.Header.Set("Content-Type", "application/json")
		}
		return req, err
	})
	if err != nil {
		return diag.Errorf(diag.Unavailable, "github actions cache: %s: %w", method, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 == 2 {
		return strictjson.Unmarshal(raw, out)
	}
	var why struct{ Code, Msg string }
	_ = strictjson.Unmarshal(raw, &why) // another text is no reason
	kind := diag.Unavailable
	switch {
	case why.Code == "already_exists" || resp.StatusCode == http.StatusConflict:
		kind = diag.Conflict
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		kind = diag.Denied
	}
	return diag.Errorf(kind, "github actions cache: %s: %s %s %s", method, resp.Status, why.Code, why.Msg)
}

// send makes a request, again if it fails for no lasting reason. Where the service asks for patience, it has it until ctx ends.
func (a *actions) send(ctx context.Context, make func() (*http.Request, error)) (*http.Response, error) {
	for n := 1; ; n++ {
		req, err := make()
		if err != nil {
			return nil, err
		}
		resp, err := a.client.Do(req)
		wait := time.Duration(n*n) * 200 * time.Millisecond
		switch {
		case err != nil && (n >= tries || ctx.Err() != nil):
			return nil, err
		case err == nil && resp.StatusCode == http.StatusTooManyRequests:
			if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
				wait = max(wait, time.Duration(s)*time.Second)
			}
			n = min(n, tries-1) // these do not count
			resp.Body.Close()
		case err == nil && (resp.StatusCode < 500 || n >= tries):
			return resp, nil
		case err == nil:
			resp.Body.Close()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// find returns the youngest entry whose key begins with a text: its key, and where it is. "" = there is none.
func (a *actions) find(ctx context.Context, prefix string) (key, url string, err error) {
	var got struct {
		OK  bool   `json:"ok"`
		URL string `json:"signed_download_url"`
		Key string `json:"matched_key"`
	}
	err = a.call(ctx, "GetCacheEntryDownloadURL", map[string]any{"key": prefix, "restore_keys": []string{prefix}}, &got)
	if err != nil || !got.OK {
		return "", "", err
	}
	return got.Key, got.URL, nil
}

// stat implements blobs. The service does not say the size.
func (a *actions) stat(ctx context.Context, d graph.Digest) (int64, error) {
	key, _, err := a.find(ctx, blobKey(d))
	if err == nil && key != blobKey(d) {
		err = diag.Errorf(diag.NotFound, "the github actions cache has no blob %s", d)
	}
	return 0, err
}

// open implements blobs.
func (a *actions) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	if offset > 0 && offset >= d.Size {
		return io.NopCloser(strings.NewReader("")), nil
	}
	key, url, err := a.find(ctx, blobKey(d.Digest))
	if err != nil {
		return nil, err
	}
	if key != blobKey(d.Digest) {
		return nil, diag.Errorf(diag.NotFound, "the github actions cache has no blob %s", d.Digest)
	}
	return a.download(ctx, url, offset)
}

func (a *actions) download(ctx context.Context, url string, offset int64) (io.ReadCloser, error) {
	resp, err := a.send(ctx, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err == nil && offset > 0 {
			req.Header.Set("Range", "bytes="+itoa(offset)+"-")
		}
		return req, err
	})
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "github actions cache: %w", err)
	}
	if want := map[bool]int{false: http.StatusOK, true: http.StatusPartialContent}[offset > 0]; resp.StatusCode != want {
		resp.Body.Close()
		return nil, diag.Errorf(diag.Unavailable, "github actions cache: a download: %s", resp.Status)
	}
	return resp.Body, nil
}

// save writes an entry. One that exists, or that another build is just writing, is diag.Conflict.
func (a *actions) save(ctx context.Context, key string, o *object) error {
	var made struct {
		OK      bool   `json:"ok"`
		URL     string `json:"signed_upload_url"`
		Message string `json:"message"`
	}
	if err := a.call(ctx, "CreateCacheEntry", map[string]any{"key": key}, &made); err != nil {
		return err
	}
	if !made.OK {
		return diag.Errorf(diag.Unavailable, "failed to reserve cache: %s", made.Message)
	}
	resp, err := a.send(ctx, func() (*http.Request, error) {
		body, err := o.open()
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, made.URL, body)
		if err == nil {
			req.ContentLength = o.size
			req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
			req.Header.Set("X-Ms-Version", azureVersion)
		}
		return req, err
	})
	if err != nil {
		return diag.Errorf(diag.Unavailable, "github actions cache: an upload: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return diag.Errorf(diag.Unavailable, "github actions cache: an upload: %s", resp.Status)
	}
	var ended struct {
		OK      bool   `json:"ok"`
		Message string `json:"message"`
	}
	if err := a.call(ctx, "FinalizeCacheEntryUpload", map[string]any{"key": key, "size_bytes": o.size}, &ended); err != nil {
		return err
	}
	if !ended.OK {
		return diag.Errorf(diag.Unavailable, "failed to commit cache: %s", ended.Message)
	}
	return nil
}

func (a *actions) put(ctx context.Context, l *Layer, _ func(event.Event)) error {
	if _, err := a.stat(ctx, l.Desc.Digest); diag.KindOf(err) != diag.NotFound {
		return err
	}
	err := a.save(ctx, blobKey(l.Desc.Digest), &object{l.Desc.Size, l.Desc.Digest, func() (io.ReadCloser, error) { return l.Open(ctx, 0) }})
	if diag.KindOf(err) == diag.Conflict {
		return nil // another build writes the same
	}
	return err
}

// busyTries is how often an index is waited for that another export has reserved, before it is taken for abandoned.
const busyTries = 8

// finish writes the configuration under the next number: entries cannot be replaced.
func (a *actions) finish(ctx context.Context, c *Config, layers []Layer, x *Export) (map[string]string, error) {
	c.annotate(layers)
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	o := &object{int64(len(raw)), digest.FromBytes(raw), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
	branch := ""
	for _, s := range a.scopes {
		if s.Permission&2 != 0 {
			branch = s.Scope
		}
	}
	prefix, skip := a.indexKey(branch), 0
	defer x.step("writing index " + strings.TrimSuffix(prefix, "#"))()
	for n := 0; ; n++ {
		key, _, err := a.find(ctx, prefix)
		if err != nil {
			return nil, err
		}
		last := 0
		if key != "" {
			if last, err = strconv.Atoi(strings.TrimPrefix(key, prefix)); err != nil {
				return nil, diag.Errorf(diag.Invalid, "the github actions cache has an index with the key %s, which is not numbered", key)
			}
		}
		err = a.save(ctx, prefix+strconv.Itoa(last+1+skip), o)
		if diag.KindOf(err) != diag.Conflict {
			return nil, err
		}
		if n >= busyTries {
			if skip++; skip > 100 {
				return nil, err
			}
			continue
		}
		select {
		case <-time.After(a.pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// load reads the configurations of all branches that the token may read: the build's own, and those it may fall back to.
func (a *actions) load(ctx context.Context) (*index, error) {
	all := &index{byDigest: map[graph.Digest][]int{}, mounts: map[string]image.Descriptor{}, from: a}
	for _, s := range a.scopes {
		key, url, err := a.find(ctx, a.indexKey(s.Scope))
		if err != nil {
			return nil, err
		}
		if key == "" {
			continue
		}
		x, err := a.loadIndex(ctx, url)
		if err != nil {
			return nil, err
		}
		all.join(x)
		for id, d := range x.mounts {
			if _, ok := all.mounts[id]; !ok {
				all.mounts[id] = d
			}
		}
	}
	return all, nil
}

func (a *actions) loadIndex(ctx context.Context, url string) (*index, error) {
	r, err := a.download(ctx, url, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readConfig(r, a)
}
