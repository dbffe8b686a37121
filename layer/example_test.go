package layer_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/strata-build/strata/layer"
)

// A directory becomes a layer: the same digest on every machine.
func ExampleFromPath() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("hello\n"), 0o600); err != nil {
		panic(err)
	}
	mode := uint32(0o755)
	src, err := layer.FromPath(dir, layer.CreateOptions{Prefix: "usr/bin", Rules: []layer.Rule{{Pattern: "**", Mode: &mode}}})
	if err != nil {
		panic(err)
	}
	defer src.Close()
	for _, e := range src.Entries {
		fmt.Printf("%s %o\n", e.Path, e.Mode)
	}
	epoch := time.Unix(0, 0)
	v, err := layer.NewVirtual(context.Background(), src.Entries, layer.TarOptions{Epoch: &epoch}, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(v.DiffID, v.Size())
	// Output:
	// usr 755
	// usr/bin 755
	// usr/bin/hello 755
	// sha256:b8c3ade50efb047e11c058856e73f23d12f47f1204778991d91db933c7340482 3072
}

// A stack of layers is looked at without unpacking it.
func ExampleFS() {
	bottom := []*layer.Entry{{Path: "etc", Type: layer.Dir, Mode: 0o755}, {Path: "etc/old", Type: layer.File}}
	top := []*layer.Entry{{Path: "etc/.wh.old", Type: layer.File}, {Path: "etc/new", Type: layer.Symlink, Link: "nothing"}}
	fs := layer.NewFS()
	for _, l := range [][]*layer.Entry{bottom, top} {
		if err := fs.Add(l); err != nil {
			panic(err)
		}
	}
	for e := range fs.Entries() {
		fmt.Println(e.Path)
	}
	// Output:
	// etc
	// etc/new
}
