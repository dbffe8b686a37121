package buildkit

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/tracing"
)

// Logins and signatures in the URLs of a client are in nothing that is kept or told: progress, errors, records, traces,
// provenance, images, caches and the log.
func TestAttackSecretsOfURLsInHistory(t *testing.T) {
	const canary = "CANARY"
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, body := range map[string]string{"Dockerfile": "FROM scratch\nARG U\nCOPY f /\nLABEL u=$U\n", "f": "data"} {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}), second(io.WriteString(w, body))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	asked := false
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if asked = asked || password == canary && r.URL.Query().Get("X-Amz-Signature") == canary; r.URL.Path != "/ctx.tar" {
			http.NotFound(rw, r)
			return
		}
		_, _ = rw.Write(archive.Bytes())
	}))
	t.Cleanup(web.Close)
	host := strings.TrimPrefix(web.URL, "http://")
	secret := func(path string) string {
		return "http://user:" + canary + "@" + host + path + "?a=b&X-Amz-Signature=" + canary
	}

	tracer, err := tracing.New(t.Context(), "test", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tracer.Close(t.Context()) })
	var log bytes.Buffer
	dir := t.TempDir()
	addr, _, stop := serveAt(t, dir, Options{Tracer: tracer, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	c := dial(t, addr)
	var told strings.Builder
	if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{
		Ref: "good", Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{"context": secret("/ctx.tar"), "attest:provenance": "mode=max", "build-arg:V": secret("/x"), "context:named": secret("/ctx.tar")},
		Exporters:     []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "made"}}},
	}); err != nil {
		t.Fatal(err)
	}
	if !asked {
		t.Error("the login was not used")
	}
	_, err = c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "missing", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"context": secret("/none.tar")}})
	if err == nil {
		t.Fatal("no error")
	}
	told.WriteString(err.Error())
	// A definition that shows its source, with a name of the client's own.
	src := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: secret("/none")}}, Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}}
	def := define(t, src)
	op := digest.FromBytes(def.Def[0]).String()
	def.Metadata = map[string]*pb.OpMetadata{op: {Description: map[string]string{"llb.customname": "ADD " + secret("/none"), "other": secret("/x")}}}
	def.Source = &pb.Source{
		Infos:     []*pb.SourceInfo{{Filename: "Dockerfile", Data: []byte("ADD " + secret("/none") + " /\n"), Language: "Dockerfile"}},
		Locations: map[string]*pb.Locations{op: {Locations: []*pb.Location{{Ranges: []*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}}}}}},
	}
	if err = solve(t, c, "named", def); err == nil {
		t.Fatal("no error")
	}
	told.WriteString(err.Error())
	told.WriteString(diag.Flatten(err).Msg)
	// Keys of caches in object stores, in each form of a request.
	keys := map[string]string{
		"bucket": "b", "region": "r", "name": "n", "endpoint_url": "http://127.0.0.1:1", "account_url": "http://127.0.0.1:1", "url": "http://127.0.0.1:1/",
		"access_key_id": canary, "secret_access_key": canary, "session_token": canary, "token": canary, "use_path_style": "true",
	}
	for _, kind := range []string{"s3", "azblob", "gha"} {
		for _, x := range []*control.CacheOptions{
			{Exports: []*control.CacheOptionsEntry{{Type: kind, Attrs: keys}}}, {Imports: []*control.CacheOptionsEntry{{Type: kind, Attrs: keys}}},
		} {
			if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "cached", Definition: mkdir(t, "/"+kind), Cache: x}); err != nil {
				told.WriteString(err.Error())
			}
		}
	}
	refs, records := past(t, c, &control.BuildHistoryRequest{})
	if !slices.Contains(refs, "cached") || !slices.Contains(refs, "named") {
		t.Fatalf("%q", refs)
	}
	for ref, r := range records {
		told.WriteString(r.String())
		for _, d := range []*control.Descriptor{r.Logs, r.ExternalError} {
			if d != nil {
				told.WriteString(readBlob(t, c, d))
			}
		}
		s, err := c.Status(t.Context(), &control.StatusRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			told.WriteString(m.String())
		}
	}
	if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "good", Finalize: true}); err != nil {
		t.Fatal(err)
	}
	if text := told.String(); strings.Contains(text, canary) || !strings.Contains(text, "xxxxx:xxxxx@"+host) {
		at := max(strings.Index(text, canary), 0)
		t.Errorf("what is told has the secret: …%s…", text[max(at-200, 0):min(at+200, len(text))])
	}
	stop()
	stopped = true
	if strings.Contains(log.String(), canary) {
		t.Errorf("the log has the secret: %s", log.String())
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if at := bytes.Index(b, []byte(canary)); at >= 0 {
			t.Errorf("%s has the secret: …%q…", path, b[max(at-100, 0):min(at+100, len(b))])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
