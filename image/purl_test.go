package image

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/graph"
)

func TestPackageURL(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct{ kind, name, want string }{
		{"docker", "docker.io/library/alpine:3", "pkg:docker/alpine@3?platform=linux%2Famd64"},
		{"docker", "localhost:5000/a/b", "pkg:docker/localhost:5000/a/b@latest?platform=linux%2Famd64"},
		{"oci", "docker.io/library/foo@" + d, "pkg:oci/foo?digest=" + d + "&platform=linux%2Famd64"},
		{"docker", "no name", "no name"},
	} {
		if got := PackageURL(c.kind, c.name, &graph.Platform{OS: "linux", Architecture: "amd64"}); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	if got := PackageURL("docker", "a/b:1", nil, "vcs_url", "https://x/y z", "ref_type", "bundle"); got != "pkg:docker/a/b@1?ref_type=bundle&vcs_url=https:%2F%2Fx%2Fy%20z" {
		t.Error(got)
	}
}
