package tree

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// TestSpecialFilesAreNotRead: a FIFO, a device, a socket and links to them are where the engine reads a file, such as a Dockerfile, an ignore
// file, an SBOM or a list of users. It gets an error at once, from a client's directory and from a layer.
func TestSpecialFilesAreNotRead(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	fill := func(dir string) {
		for _, err := range []error{
			unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666),
			unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))),
			unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o666, 0),
			os.Symlink("fifo", filepath.Join(dir, "to-fifo")), os.Symlink("zero", filepath.Join(dir, "to-zero")),
			os.Symlink("/dev/zero", filepath.Join(dir, "to-dev-zero")), os.Symlink("/proc/self/fd/0", filepath.Join(dir, "to-fd")),
			os.Mkdir(filepath.Join(dir, "dir"), 0o755),
		} {
			check(t, err)
		}
		big, err := os.Create(filepath.Join(dir, "big"))
		check(t, err)
		check(t, big.Truncate(1<<40))
		check(t, big.Close())
	}
	dir := t.TempDir()
	fill(dir)
	stack := NewStack(s, []store.LayerID{layerOf(t, s, fill)})
	t.Cleanup(stack.Release)
	layers, err := stack.Files()
	check(t, err)
	client, err := local(t, dir, &graph.Local{Name: "context"}).Files()
	check(t, err)
	for place, files := range map[string]*Files{"client": client, "layer": layers} {
		for name, kind := range map[string]diag.Kind{
			"fifo": diag.Invalid, "zero": diag.Invalid, "socket": diag.Invalid, "to-fifo": diag.Invalid, "to-zero": diag.Invalid,
			"to-dev-zero": diag.NotFound, "to-fd": diag.NotFound, "dir": diag.Invalid, "big": diag.Exhausted,
		} {
			done := make(chan error, 1)
			go func() {
				_, err := files.ReadFile(context.Background(), name, 1<<20)
				done <- err
			}()
			select {
			case err := <-done:
				if diag.KindOf(err) != kind {
					t.Errorf("%s, %s: %v of kind %v, not %v", place, name, err, diag.KindOf(err), kind)
				}
			case <-time.After(time.Minute): // only to fail; nothing is measured
				t.Fatalf("%s, %s: waits", place, name)
			}
		}
	}
}

// TestFIFOInTheContext: what is hashed and copied of a directory with special files does not wait for them either.
func TestFIFOInTheContext(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	check(t, os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644))
	tr := local(t, dir, &graph.Local{Name: "context"})
	before := digestOf(t, tr, sel(graph.Select{Path: "/"}))
	check(t, os.Remove(filepath.Join(dir, "f")))
	check(t, unix.Mkfifo(filepath.Join(dir, "f"), 0o644))
	if after := digestOf(t, local(t, dir, &graph.Local{Name: "context"}), sel(graph.Select{Path: "/"})); after == before {
		t.Error("a file that became a FIFO has the same digest")
	}
}
