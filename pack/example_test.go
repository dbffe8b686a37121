package pack_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/pack"
)

// An image is assembled from a directory, written, read again and listed.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "hello.sh"), []byte("echo hello\n"), 0o644); err != nil {
		panic(err)
	}
	w := pack.New(pack.Options{})
	defer w.Close()

	src, err := layer.FromPath(filepath.Join(dir, "hello.sh"), layer.CreateOptions{Prefix: "opt"})
	if err != nil {
		panic(err)
	}
	defer src.Close()
	epoch := time.Unix(0, 0)
	l := pack.NewLayer("hello", src.Entries, layer.TarOptions{Epoch: &epoch})
	im := pack.Assemble(nil, []*pack.Layer{l}, pack.Change{
		Created: &epoch, Entrypoint: []string{"/bin/sh", "/opt/hello.sh"}, Platform: graph.Platform{OS: "linux", Architecture: "amd64"},
	})
	archive := filepath.Join(dir, "hello.tar")
	ctx := context.Background()
	if _, err := w.Write(ctx, []*pack.Image{im}, pack.Target{Format: pack.DockerArchive, Path: archive, Names: []string{"hello:1"}}); err != nil {
		panic(err)
	}

	again, err := w.Image(ctx, archive, graph.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		panic(err)
	}
	fmt.Println(again.Name, again.Config.Config.Entrypoint)
	for _, l := range again.Layers {
		entries, err := w.Entries(ctx, l)
		if err != nil {
			panic(err)
		}
		for _, e := range entries {
			fmt.Println(e.Path, e.Size)
		}
	}
	// Output:
	// docker.io/library/hello:1 [/bin/sh /opt/hello.sh]
	// opt 0
	// opt/hello.sh 11
}
