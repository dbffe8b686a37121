package history

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/strata-build/strata/diag"
)

func open(t *testing.T, dir string) (*Store, []Record) {
	t.Helper()
	s, rs, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, rs
}

func put(t *testing.T, s *Store, text string) Blob {
	t.Helper()
	b, err := s.PutBytes("text/plain", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func content(t *testing.T, s *Store, b Blob) string {
	t.Helper()
	f, got, err := s.Open(b.Digest)
	if diag.KindOf(err) == diag.NotFound {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil || got != b || int64(len(data)) != b.Size {
		t.Errorf("%+v %v", got, err)
	}
	return string(data)
}

func TestRecordsAndBlobs(t *testing.T) {
	dir := t.TempDir()
	s, rs := open(t, dir)
	if len(rs) != 0 {
		t.Errorf("%+v", rs)
	}
	log, shared, lost := put(t, s, "log"), put(t, s, "shared"), put(t, s, "lost")
	if content(t, s, log) != "" {
		t.Error("a blob that no record names can be read")
	}
	save := func(name, value string, blobs ...Blob) {
		t.Helper()
		if err := s.Save(name, json.RawMessage(value), blobs); err != nil {
			t.Fatal(err)
		}
	}
	save("a/b", `{"n":1}`, log, shared)
	save("c", `{"n":2}`, shared)
	s, rs = open(t, dir) // after a restart
	if len(rs) != 2 || content(t, s, log) != "log" || content(t, s, shared) != "shared" || len(s.Blobs()) != 2 {
		t.Errorf("%+v %+v", rs, s.Blobs())
	}
	if _, err := os.Stat(s.blobPath(lost.Digest)); !os.IsNotExist(err) {
		t.Error("a blob that no record names is kept:", err)
	}
	save("a/b", `{"n":3}`, shared)
	if content(t, s, log) != "" || content(t, s, shared) != "shared" {
		t.Error("a record that changes gives up what it names no more, and nothing else")
	}
	if err := s.Delete("a/b"); err != nil || content(t, s, shared) != "shared" {
		t.Error(err)
	}
	again := put(t, s, "shared") // of a record that comes after the last one that names it has gone
	if err := s.Delete("c"); err != nil || content(t, s, shared) != "" {
		t.Error(err)
	}
	save("d", `{}`, again)
	if content(t, s, again) != "shared" {
		t.Error("a blob went away before its record came")
	}
	if err := s.Delete("unknown"); err != nil {
		t.Error(err)
	}
}

func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	for _, name := range []string{"whole", "torn", "cut", "moved"} {
		if err := s.Save(name, json.RawMessage(`{}`), []Blob{put(t, s, name)}); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(s.path("torn"), nil, 0o600)
	os.Truncate(s.blobPath(put(t, s, "cut").Digest), 1)
	os.Rename(s.path("moved"), filepath.Join(dir, "other.json"))
	s, rs := open(t, dir)
	if len(rs) != 1 || rs[0].Name != "whole" || len(s.Blobs()) != 1 {
		t.Errorf("%+v", rs)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*.json")); len(names) != 1 {
		t.Errorf("%q", names)
	}
}
