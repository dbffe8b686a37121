package pack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// These tests give what is written to the tools that users have, and take what those write. Each runs only where its tool is.

// written writes the sample in every format.
func written(t *testing.T) (map[Format]string, *Image) {
	t.Helper()
	w := workspace(t, Options{})
	im := sample(t, w)
	out := map[Format]string{}
	for _, f := range Formats() {
		p := filepath.Join(t.TempDir(), f)
		write(t, w, im, Target{Format: Format(f), Path: p, Names: []string{"app:1"}})
		out[Format(f)] = p
	}
	return out, im
}

// skopeo reads every format, and writes every format that is read here.
func TestSkopeo(t *testing.T) {
	needs(t, "skopeo")
	files, im := written(t)
	transports := map[Format]string{OCI: "oci", OCIArchive: "oci-archive", DockerArchive: "docker-archive", DockerLegacy: "docker-archive", Dir: "dir"}
	for f, p := range files {
		to := filepath.Join(t.TempDir(), "copy")
		run(t, "skopeo", "--insecure-policy", "copy", "-q", transports[f]+":"+p, "oci:"+to)
		w := workspace(t, Options{})
		got := open(t, w, to)
		if !slices.Equal(diffs(got), diffs(im)) {
			t.Errorf("%s: skopeo copies %v", f, diffs(got))
		}
	}
	for _, to := range []string{"oci:%s", "oci-archive:%s", "docker-archive:%s:app:1", "dir:%s"} {
		p := filepath.Join(t.TempDir(), "by-skopeo")
		run(t, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+files[OCI], fmt.Sprintf(to, p))
		w := workspace(t, Options{})
		if got := open(t, w, p); !slices.Equal(diffs(got), diffs(im)) || shows(t, w, got)["etc/b"] != "b" {
			t.Errorf("%s: %v", to, diffs(got))
		}
	}
}

func TestUmoci(t *testing.T) {
	needs(t, "umoci")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	files, _ := written(t)
	to := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", files[OCI]+":1", to)
	for p, want := range map[string]string{"etc/a": "a", "etc/b": "b", "layer-order": "a"} {
		if b, err := os.ReadFile(filepath.Join(to, "rootfs", p)); string(b) != want {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
}

func TestPodman(t *testing.T) {
	needs(t, "podman")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	files, _ := written(t)
	store := t.TempDir()
	podman := func(args ...string) string {
		return run(t, append([]string{"podman", "--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	for f, p := range files {
		if f == OCI || f == Dir {
			continue
		}
		podman("load", "-q", "-i", p)
		if got := podman("image", "inspect", "-f", "{{.User}} {{.Config.Env}} {{len .RootFS.Layers}}", "app:1"); got != "1000:1000 [A=1] 3" {
			t.Errorf("%s: podman has %s", f, got)
		}
		podman("rmi", "-a", "-f")
	}
}

// The files of each format, sorted; in the legacy form a repeated layer is a symlink.
func TestFilesOfFormats(t *testing.T) {
	files, _ := written(t)
	for f, want := range map[Format]string{
		OCIArchive: "blobs/sha256/ index.json oci-layout", DockerArchive: "blobs/sha256/ index.json manifest.json oci-layout",
		DockerLegacy: "/VERSION /json /layer.tar manifest.json repositories",
	} {
		needs(t, "tar")
		list := run(t, "tar", "-tf", files[f])
		for _, part := range strings.Fields(want) {
			if !strings.Contains(list, part) {
				t.Errorf("%s has no %s:\n%s", f, part, list)
			}
		}
		if !slices.IsSorted(strings.Split(list, "\n")) {
			t.Errorf("%s is not sorted:\n%s", f, list)
		}
	}
	if !strings.Contains(run(t, "tar", "-tvf", files[DockerLegacy]), "layer.tar -> ../") {
		t.Error("the repeated layer is no symlink")
	}
}
