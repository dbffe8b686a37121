package export

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// TestVerifiedLayerIsHashedAgainWhenItsFilesChange writes one layer several times from one process. What was hashed once is not
// hashed again, unless a file's ctime moved: then a changed content stops the export, and an equal one does not.
func TestVerifiedLayerIsHashedAgainWhenItsFilesChange(t *testing.T) {
	s := openStore(t)
	id := addLayer(t, s, map[string]string{"data": strings.Repeat("as it was made\n", 1000)})
	st := tree.NewStack(s, []store.LayerID{id})
	t.Cleanup(st.Release)
	set := &Set{Images: []Image{{Platform: amd64, Config: testConfig(amd64, "COPY data /data"), Tree: st, Epoch: &epoch}}}
	env := testEnv(s, nil)
	save := func() ([]byte, error) {
		c := &client{}
		env.Session = c
		x, err := New(output("docker", "name=app"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Run(t.Context(), env, set, []Exporter{x})
		return c.buf.Bytes(), err
	}
	want, err := save()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.LayerDir(id), "data")
	state := func() uint64 {
		info, err := s.Layer(id)
		if err != nil {
			t.Fatal(err)
		}
		state, ok := s.VerifiedLayer(id, info.DiffID)
		if !ok {
			t.Fatal("the export did not note that it has hashed the layer")
		}
		return state
	}
	before := state()
	if err := os.Link(file, filepath.Join(t.TempDir(), "name")); err != nil { // moves the ctime, as a COPY by hard link does
		t.Fatal(err)
	}
	if got, err := save(); err != nil || string(got) != string(want) {
		t.Errorf("a second name of a file: error %v, equal %t", err, string(got) == string(want))
	}
	if state() == before {
		t.Error("the layer was not hashed again although a ctime moved")
	}
	damaged := []byte(strings.Repeat("as it was made\n", 999) + "as it was faked")
	old := time.Unix(1_750_000_000, 0)
	if err := os.WriteFile(file, damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	ts := []unix.Timespec{{Sec: old.Unix()}, {Sec: old.Unix()}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, file, ts, 0); err != nil { // size and mtime are those of before
		t.Fatal(err)
	}
	if _, err := save(); diag.KindOf(err) != diag.Conflict || !strings.Contains(err.Error(), "is damaged: its files make") {
		t.Errorf("a changed content: %v, want an error that names the damage", err)
	}
}
