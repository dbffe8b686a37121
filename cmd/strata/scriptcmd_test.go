package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
)

func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	var h http.Handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if len(args) == 2 {
		inner := h
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); !ok || user != args[0] || password != args[1] {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			inner.ServeHTTP(w, r)
		})
	}
	if len(args) == 3 {
		h = withTokens(h, args[0], args[1], args[2])
	}
	s := httptest.NewServer(h)
	ts.Defer(s.Close)
	ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "http://"))
}

// withTokens is a registry that wants a token, which its token server gives for a password, or for the password as an identity token.
func withTokens(inner http.Handler, user, password, token string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			if r.Header.Get("Authorization") == "Bearer "+token {
				inner.ServeHTTP(w, r)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		u, p, _ := r.BasicAuth()
		if (u != user || p != password) && r.FormValue("refresh_token") != password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"access_token":%q,"refresh_token":%q}`, token, token, password)
	})
}

// cmdServe serves a directory: files as they are, and X.git through git's own http server.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: serve DIR")
	}
	dir := ts.MkAbs(args[0])
	mux := http.NewServeMux()
	files := http.FileServer(http.Dir(dir))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, ".git/") {
			files.ServeHTTP(w, r)
			return
		}
		path, err := exec.Command("git", "--exec-path").Output()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		(&cgi.Handler{
			Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
			Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		}).ServeHTTP(w, r)
	})
	s := httptest.NewServer(mux)
	ts.Defer(s.Close)
	ts.Setenv("SERVER", s.URL)
}

// output runs strata and returns what it prints.
func strata(ts *testscript.TestScript, args ...string) []byte {
	cmd := exec.Command("strata", args...)
	cmd.Env = append(cmd.Environ(), "STRATA_ROOT="+ts.Getenv("STRATA_ROOT"), "STRATA_DAEMON="+ts.Getenv("STRATA_DAEMON"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		ts.Fatalf("strata %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out
}

// cmdConfig prints a field: a text as it is, a list with a line for each, everything else as JSON.
func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: config NAME FIELD")
	}
	var c *image.Config
	for _, part := range readArchive(ts, args[0]) {
		c = part.config
	}
	v := reflect.ValueOf(c)
	for name := range strings.SplitSeq(args[1], ".") {
		for v.Kind() == reflect.Pointer {
			if v.IsNil() {
				ts.Fatalf("%s is not set", args[1])
			}
			v = v.Elem()
		}
		if v = v.FieldByName(name); !v.IsValid() {
			ts.Fatalf("there is no field %s", args[1])
		}
	}
	switch x := v.Interface().(type) {
	case string:
		fmt.Fprintln(ts.Stdout(), x)
	case []string:
		fmt.Fprintln(ts.Stdout(), strings.Join(x, "\n"))
	case []image.History:
		for _, h := range x {
			fmt.Fprintln(ts.Stdout(), h.CreatedBy)
		}
	default:
		b, err := json.Marshal(x)
		ts.Check(err)
		fmt.Fprintln(ts.Stdout(), string(b))
	}
}

func cmdFiles(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: files NAME")
	}
	for _, part := range readArchive(ts, args[0]) {
		for _, f := range part.files {
			fmt.Fprintln(ts.Stdout(), f)
		}
	}
}

// saved is one image of an OCI archive.
type saved struct {
	config *image.Config
	files  []string // "LAYER PATH MODE UID:GID"
}

// readArchive saves an image as an OCI archive, and reads it independently of the code under test.
func readArchive(ts *testscript.TestScript, name string) []saved {
	blobs := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(strata(ts, "image", "save", name)))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		ts.Check(err)
		b, err := io.ReadAll(r)
		ts.Check(err)
		blobs[strings.TrimPrefix(h.Name, "./")] = b
	}
	blob := func(d string) []byte { return blobs["blobs/"+strings.Replace(d, ":", "/", 1)] }
	type document struct {
		Manifests, Layers []image.Descriptor
		Config            image.Descriptor
	}
	var out []saved
	var walk func(b []byte)
	walk = func(b []byte) {
		var d document
		ts.Check(json.Unmarshal(b, &d))
		for _, m := range d.Manifests {
			walk(blob(string(m.Digest)))
		}
		if d.Config.Digest == "" {
			return
		}
		s := saved{config: &image.Config{}}
		ts.Check(json.Unmarshal(blob(string(d.Config.Digest)), s.config))
		for i, l := range d.Layers {
			list, err := listLayer(i, blob(string(l.Digest)))
			ts.Check(err)
			s.files = append(s.files, list...)
		}
		out = append(out, s)
	}
	walk(blobs["index.json"])
	if len(out) == 0 {
		ts.Fatalf("the archive of %s has no image", name)
	}
	return out
}

func listLayer(n int, data []byte) ([]string, error) {
	plain, _, err := layer.Decompress(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	var out []string
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%d %s %o %d:%d %s", n, strings.TrimPrefix(h.Name, "./"), h.Mode, h.Uid, h.Gid, h.Linkname))
	}
}
