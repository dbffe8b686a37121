package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// flip changes one byte of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[rand.IntN(len(data))] ^= byte(1 + rand.IntN(255))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// files lists the files with content below a directory of the state.
func (s *site) files(dir string) []string {
	var out []string
	_ = filepath.WalkDir(filepath.Join(s.root, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if st, err := d.Info(); err == nil && st.Size() > 0 {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// TestDamage flips a byte in files of every kind. The program starts, "check --full --repair" finds what matters, and the build
// gives the same image as before.
func TestDamage(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	// The times are fixed here, because a layer whose times are set to the epoch as it is exported has no diff_id of its own.
	s.write("Dockerfile", "FROM base\nCOPY one /one\nRUN echo two > /two && touch -d @1 /two /\n"+
		"RUN --mount=type=cache,target=/c echo three > /three && echo x > /c/x && touch -d @1 /three /\n")
	s.write("one", strings.Repeat("one\n", 1000))
	if r := s.run("build", "--progress=plain", "-t", "app", "."); r.code != 0 {
		t.Fatal(r.err)
	}
	want := s.layers("app")
	s.ok("daemon", "stop")
	rounds := 12
	if testing.Short() {
		rounds = 2
	}
	for _, kind := range []string{"blobs", "snapshots", "meta.db", "wal", "lock", "index", "version-less"} {
		t.Run(kind, func(t *testing.T) {
			s.in(t)
			for round := range rounds {
				s.damageRound(kind, round, want)
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
		})
	}
	s.in(t)
}

func (s *site) damageRound(kind string, round int, want []string) {
	t := s.t
	var at []string
	switch kind {
	case "blobs", "index":
		at = s.files(kind)
	case "snapshots":
		// An imported layer is verified against its blob, which earlier damage may have cost.
		s.base()
		s.ok("daemon", "stop")
		at = s.files(kind)
	case "meta.db":
		at = []string{filepath.Join(s.root, kind)}
	case "lock":
		if err := os.WriteFile(filepath.Join(s.root, "lock"), []byte{0xff, 0, '\n', byte(round)}, 0o600); err != nil {
			t.Fatal(err)
		}
	case "wal": // a log is there only when the owner died with changes
		s.write("salt", fmt.Sprint(round))
		s.write("Salt", "FROM base\nCOPY salt /salt\nRUN true\n")
		s.ok("build", "--progress=plain", "-f", "Salt", "-o", "type=cacheonly", ".")
		s.killEngine()
		at, _ = filepath.Glob(filepath.Join(s.root, "wal.*"))
		at = slices.DeleteFunc(at, func(p string) bool { st, err := os.Stat(p); return err != nil || st.Size() == 0 })
	case "version-less":
		for _, name := range []string{"oci-layout", "index.json"} {
			at = append(at, filepath.Join(s.root, name))
		}
	}
	bad := ""
	if len(at) > 0 {
		bad = at[rand.IntN(len(at))]
		flip(t, bad)
	} else if kind != "lock" && kind != "wal" {
		t.Fatalf("the state has no files in %s", kind)
	}
	found := s.run("check", "--full")
	if found.code == 1 && !strings.Contains(found.out, "damaged: ") {
		t.Fatalf("check --full fails without finding damage: %s%s", found.out, found.err)
	}
	if found.code == 0 && (kind == "blobs" || kind == "snapshots" && !strings.Contains(bad, "mounts")) {
		t.Errorf("check --full does not find the damage in %s", bad)
	}
	s.ok("check", "--full", "--repair")
	s.healthy()
	if _, err := os.Stat(filepath.Join(s.root, "lock")); err != nil {
		t.Error(err)
	}
	if r := s.run("image", "inspect", "base"); r.code != 0 { // it went with what it needs
		s.base()
	}
	if r := s.run("build", "--progress=plain", "-t", "app", "."); r.code != 0 {
		t.Fatalf("the build after damage to %s: %s", bad, r.err)
	}
	if got := s.layers("app"); !slices.Equal(got, want) {
		t.Errorf("after damage to %s the image is %v, not %v", bad, got, want)
	}
	s.healthy()
	s.ok("daemon", "stop")
}

// TestDamageNotServed flips bytes in blobs and layers while an engine has the state open, and looks at what is exported: right
// content, or an error.
func TestDamageNotServed(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nCOPY one /one\n")
	s.write("one", strings.Repeat("one\n", 100_000))
	s.ok("build", "-t", "app", "--progress=plain", ".")
	good := filepath.Join(s.dir, "..", "good.tar")
	s.ok("image", "save", "--format", "oci", "-o", good, "app")
	want, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for _, kind := range []string{"blobs", "snapshots"} {
			at := s.files(kind)
			bad := at[rand.IntN(len(at))]
			before, err := os.ReadFile(bad)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, bad)
			to := filepath.Join(s.dir, "..", "after.tar")
			r := s.run("image", "save", "--format", "oci", "-o", to, "app")
			if got, _ := os.ReadFile(to); r.code == 0 && !bytes.Equal(got, want) {
				t.Errorf("damage to %s was exported", bad)
			}
			if r.code != 0 {
				s.fails(r)
			}
			if err := os.WriteFile(bad, before, 0o644); err != nil {
				t.Fatal(err)
			}
			s.ok("check", "--full", "--repair")
			if r := s.run("image", "inspect", "base"); r.code != 0 {
				s.base()
			}
			s.ok("build", "-t", "app", "--progress=plain", ".")
		}
	}
}
