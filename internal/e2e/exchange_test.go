package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exchanged uses what most Dockerfiles use.
const exchanged = `FROM REGISTRY/base:1 AS base
ARG VERSION=1
ENV NAME=value VERSION=2
WORKDIR /work
COPY one /one
COPY --chown=1:2 --chmod=640 dir /dir
COPY dir/*.txt /texts/
COPY dir/sub /texts/
COPY --exclude=*.md dir /some
COPY --parents dir/sub/c.txt /parents/
COPY <<doc /doc
heredoc
doc
RUN cat /proc/sys/kernel/random/uuid > /user
USER 7:7
WORKDIR rel
USER 0:0
RUN --mount=type=cache,target=/cache --mount=type=bind,source=dir,target=/dir2 --mount=type=secret,id=none --mount=type=tmpfs,target=/t cat /dir2/a.txt /proc/sys/kernel/random/uuid > /made && cat /dir2/a.txt > /cache/kept
FROM base AS other
ENV NAME=changed
RUN <<script
cat /one /proc/sys/kernel/random/uuid > /other
script
FROM scratch
COPY --from=base /made /
COPY --from=base /user /
COPY --from=other /other /x/
COPY --link one /linked
`

// unique are the files that differ whenever a step runs.
var unique = []string{"made", "user", "x/other"}

// TestCachesAreExchanged builds with BuildKit and with Strata, each with the caches that the other wrote, on empty states.
func TestCachesAreExchanged(t *testing.T) {
	needBuild(t)
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	needTools(t, filepath.Join(bin, "buildkitd"), filepath.Join(bin, "buildctl"))
	host := serveRegistry(t)
	if host == "" {
		t.Skip("needs docker-registry")
	}
	s := newSite(t)
	s.base()
	s.ok("image", "tag", "base", host+"/base:1")
	s.ok("image", "push", host+"/base:1")
	s.write("Dockerfile", strings.ReplaceAll(exchanged, "REGISTRY", host))
	for name, text := range map[string]string{"one": "1", "dir/a.txt": "a", "dir/b.md": "b", "dir/sub/c.txt": "c", ".dockerignore": "ignored\n", "ignored": ""} {
		s.write(name, text)
	}
	s.env = append(s.env, "SOURCE_DATE_EPOCH=") // it is part of the keys of file steps
	clean := func() {
		t.Helper()
		s.run("image", "rm", "base")
		s.run("image", "rm", host+"/base:1")
		s.ok("prune", "--all")
	}
	buildkit := func(args ...string) string {
		t.Helper()
		root := shortTemp(t)
		sock := root + "/b.sock"
		daemon(t, "unix", sock, filepath.Join(bin, "buildkitd"), "--addr", "unix://"+sock, "--root", root+"/root", "--oci-worker=true",
			"--containerd-worker=false", "--oci-worker-net=host", "--config", os.DevNull)
		return tool{filepath.Join(bin, "buildctl"), "--addr", "unix://" + sock}.run(t, append([]string{
			"build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=" + s.dir, "--local=dockerfile=" + s.dir,
		}, args...)...)
	}
	same := func(what, a, b string) {
		t.Helper()
		for _, name := range unique {
			x, err1 := os.ReadFile(filepath.Join(a, name))
			y, err2 := os.ReadFile(filepath.Join(b, name))
			if err1 != nil || err2 != nil || string(x) != string(y) {
				t.Errorf("%s: %s: %q and %q (%v, %v)", what, name, x, y, err1, err2)
			}
		}
	}
	clean()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ref := func(name string) string { return host + "/cache:" + name }
	for _, mode := range []string{"min", "max"} {
		// What BuildKit does not know, the content of cache mounts, does not hinder it.
		s.ok("build", "--cache-to", "type=local,cache-mounts=true,mode="+mode+",dest="+at("s"+mode),
			"--cache-to", "type=registry,cache-mounts=true,mode="+mode+",ref="+ref("s"+mode), "-o", at("strata"), ".")
		clean()
		for _, from := range []string{"type=local,src=" + at("s"+mode), "type=registry,ref=" + ref("s"+mode)} {
			buildkit("--import-cache", from, "--output", "type=local,dest="+at("out"))
			same("BuildKit with Strata's cache "+from, at("strata"), at("out"))
		}
		buildkit("--export-cache", "type=local,mode="+mode+",dest="+at("b"+mode), "--output", "type=local,dest="+at("buildkit"))
		buildkit("--import-cache", "type=local,src="+at("b"+mode), "--export-cache", "type=registry,mode="+mode+",ref="+ref("b"+mode), "--output", "type=local,dest="+at("buildkit"))
		for _, from := range []string{"type=local,src=" + at("b"+mode), "type=registry,ref=" + ref("b"+mode)} {
			r := s.ok("build", "--progress=plain", "--cache-from", from, "-o", at("out"), ".")
			same("Strata with BuildKit's cache "+from, at("buildkit"), at("out"))
			for step, state := range r.steps() {
				if state != "CACHED" && (strings.Contains(step, "RUN") || strings.Contains(step, "COPY")) {
					t.Errorf("Strata with BuildKit's cache %s: %s: %s", from, state, step)
				}
			}
			clean()
		}
	}
	// A cache in the image itself, and one in an object store. The former holds the results of the image's own layers.
	app := host + "/app:"
	s3 := "type=s3,bucket=cache,region=us-east-1,access_key_id=key,secret_access_key=secret,use_path_style=true,mode=max,endpoint_url=" + objects(t) + ",name="
	strata, bucket := s3+"strata", s3+"buildkit"
	s.ok("build", "--cache-to", "type=inline", "--cache-to", strata, "-t", app+"strata", "--push", "-o", at("strata"), ".")
	buildkit("--export-cache", "type=inline", "--output", "type=image,push=true,name="+app+"buildkit")
	buildkit("--import-cache", "type=registry,ref="+app+"buildkit", "--export-cache", bucket, "--output", "type=local,dest="+at("buildkit"))
	clean()
	for _, from := range []string{"type=registry,ref=" + app + "strata", strata} {
		buildkit("--import-cache", from, "--output", "type=local,dest="+at("out"))
		same("BuildKit with Strata's cache "+from, at("strata"), at("out"))
	}
	for _, from := range []string{"type=registry,ref=" + app + "buildkit", bucket} {
		s.ok("build", "--cache-from", from, "-o", at("out"), ".")
		same("Strata with BuildKit's cache "+from, at("buildkit"), at("out"))
		clean()
	}
}

// objects starts an object store with a bucket and returns its URL.
func objects(t *testing.T) string {
	t.Helper()
	silo := filepath.Join(t.TempDir(), "silo")
	build := exec.Command("go", "build", "-o", silo, "./s3")
	build.Dir = "../../conformance"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	at := freeAddress(t)
	daemon(t, "tcp", at, silo, "server", "--json", "--address", at, t.TempDir())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+at+"/cache", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("no bucket: %v", err)
	}
	resp.Body.Close()
	return "http://" + at
}
