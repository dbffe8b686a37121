package tree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// A large copy from a layer takes no file of an earlier copy whose attributes are not those of the source.
func TestLineageComparesAttributes(t *testing.T) {
	const (
		first  = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		second = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	)
	ctx, s := context.Background(), newStore(t)
	build := func(key, value string) string {
		t.Helper()
		from := NewStack(s, []store.LayerID{layerOf(t, s, func(dir string) {
			for i := range sharedFiles + 1 {
				name := filepath.Join(dir, "src", fmt.Sprint(i))
				write(t, dir, map[string]string{"src/" + fmt.Sprint(i): "x"})
				check(t, os.Chtimes(name, time.Unix(1e9, 0), time.Unix(1e9, 0)))
			}
			if key != "" {
				check(t, unix.Lsetxattr(dir+"/src/7", key, []byte(value), 0))
			}
		})})
		defer from.Release()
		q := graph.Select{Path: "/src", Contents: true}
		digestOf(t, from, sel(q)) // the digests of the files are known then
		d, err := s.NewLayer(ctx)
		check(t, err)
		u, err := NewUpper(NewStack(s, nil), d)
		check(t, err)
		defer u.Close()
		f, err := from.Files()
		check(t, err)
		m, err := f.Pick(ctx, q, false)
		check(t, err)
		e := FindLineage(s, "lineage")
		defer e.Close()
		private := func(_, uid, gid uint32) (uint32, uint32, uint32) { return 0o600, uid, gid }
		check(t, u.Copy(ctx, f, &m[0], "app", CopyOptions{Earlier: e, Own: private}))
		_, err = u.Finish(ctx)
		check(t, err)
		check(t, u.SaveLineage(s, "lineage"))
		check(t, s.Update(ctx, func(b *store.Batch) error { b.Layer(d, store.LayerInfo{}); return nil }))
		return filepath.Join(d.Dir, "app")
	}
	ino := func(name string) uint64 {
		t.Helper()
		var st unix.Stat_t
		check(t, unix.Lstat(name, &st))
		return st.Ino
	}
	var before string
	for n, c := range []struct{ key, value string }{
		{"security.capability", first},
		{"security.capability", second},
		{"", ""},
		{"user.a", "1"},
		{"user.a", "2"},
		{"", ""},
	} {
		app := build(c.key, c.value)
		for _, key := range []string{"security.capability", "user.a"} {
			want := ""
			if key == c.key {
				want = c.value
			}
			if got := string(attr(filepath.Join(app, "7"), key)); got != want {
				t.Errorf("copy %d: %s is %q, want %q", n, key, got, want)
			}
		}
		if n > 0 && ino(before+"/8") != ino(app+"/8") {
			t.Errorf("copy %d: a file without attributes is not shared", n)
		}
		before = app
	}
}
