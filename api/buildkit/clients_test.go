package buildkit

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

// tool returns the path of a client that scripts/clients has built.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := filepath.Abs("../../bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Skip("run scripts/clients first")
	}
	return p
}

// base gives an engine the image that the corpus begins with: busybox, with links that its shell needs.
func base(t *testing.T, e *engine.Engine) {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := errors.Join(w.WriteHeader(&h), second(w.Write(data))); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/"} {
		put(tar.Header{Name: d, Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	put(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, box)
	for _, a := range []string{"sh", "cat", "cp", "echo", "false", "ls", "sleep", "test", "tr", "true"} {
		put(tar.Header{Name: "bin/" + a, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
	}
	put(tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0::/:/bin/sh\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ImportImage(t.Context(), &b, engine.ImportOptions{Name: "base"}); err != nil {
		t.Fatal(err)
	}
}

func second(_ int, err error) error { return err }

// run runs a client and returns what it prints.
func run(t *testing.T, dir string, env []string, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// config returns the image configuration in an OCI archive, without what says when it was made.
func config(t *testing.T, archive string) *image.Config {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobs := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if blobs[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	decode := func(name string, v any) {
		if err := json.Unmarshal(blobs[name], v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	blob := func(d string) string { return "blobs/" + strings.Replace(d, ":", "/", 1) }
	var index struct{ Manifests []image.Descriptor }
	decode("index.json", &index)
	var manifest struct{ Config image.Descriptor }
	decode(blob(index.Manifests[0].Digest.String()), &manifest)
	var c image.Config
	decode(blob(manifest.Config.Digest.String()), &c)
	return &c
}

const epoch = "1700000000"

// options of the exporters that make the same bytes at all times.
const sameBytes = "rewrite-timestamp=true"

func TestClientsMakeTheSameImages(t *testing.T) {
	buildctl, buildx := tool(t, "buildctl"), tool(t, "buildx")
	corpus, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(corpus) < 5 {
		t.Fatalf("%v, %v", corpus, err)
	}
	_, own := serve(t, Options{})
	ctlAddr, ctlEngine := serve(t, Options{})
	xAddr, xEngine := serve(t, Options{})
	for _, e := range []*engine.Engine{own, ctlEngine, xEngine} {
		base(t, e)
	}
	home := t.TempDir()
	env := []string{"BUILDX_CONFIG=" + home, "BUILDKIT_HOST=" + ctlAddr, "DOCKER_CONFIG=" + home, "SOURCE_DATE_EPOCH=" + epoch}
	if out, err := run(t, ".", env, buildx, "create", "--name", "x", "--driver", "remote", xAddr, "--use"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	secret := filepath.Join(home, "token")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range corpus {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			out := t.TempDir()
			archive := func(name string) string { return filepath.Join(out, name+".tar") }
			buildDirect(t, own, dir, secret, archive("own"))
			named := filepath.Join(dir, "named")
			if _, err := os.Stat(named); err != nil {
				named = dir
			}
			text, err := run(t, dir, env, buildctl, "build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=.", "--local=dockerfile=.",
				"--local=named="+abs(t, named), "--opt=context:named=local:named", "--secret=id=token,src="+secret, "--opt=build-arg:SOURCE_DATE_EPOCH="+epoch,
				"--output=type=oci,"+sameBytes+",dest="+archive("buildctl"))
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			text, err = run(t, dir, env, buildx, "build", "--progress=plain", "--provenance=false", "--build-context=named="+abs(t, named),
				"--secret=id=token,src="+secret, "--output=type=oci,"+sameBytes+",dest="+archive("buildx"), ".")
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			want := encode(t, config(t, archive("own")))
			for _, name := range []string{"buildctl", "buildx"} {
				if got := encode(t, config(t, archive(name))); got != want {
					t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
				}
			}
			// Once more: everything is found.
			text, err = run(t, dir, env, buildx, "build", "--progress=plain", "--provenance=false", "--build-context=named="+abs(t, named),
				"--secret=id=token,src="+secret, "--output=type=cacheonly", ".")
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			steps := regexp.MustCompile(`(?m)^(#\d+) \[.*\] (RUN|COPY|ADD|WORKDIR) `).FindAllStringSubmatch(text, -1)
			for _, s := range steps {
				if !strings.Contains(text, s[1]+" CACHED\n") {
					t.Errorf("%s was not found in the cache: %s", s[0], text)
				}
			}
			if len(steps) == 0 {
				t.Errorf("no steps: %s", text)
			}
		})
	}
}

func abs(t *testing.T, p string) string {
	t.Helper()
	a, err := filepath.Abs(p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func encode(t *testing.T, c *image.Config) string {
	t.Helper()
	b, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// buildDirect builds a Dockerfile with the engine itself.
func buildDirect(t *testing.T, e *engine.Engine, dir, secret, dest string) {
	t.Helper()
	named := filepath.Join(dir, "named")
	if _, err := os.Stat(named); err != nil {
		named = dir
	}
	s, err := session.NewLocal(session.LocalOptions{
		Dirs:    map[string]session.Dir{"context": {Path: dir}, "dockerfile": {Path: dir}, "named": {Path: named}},
		Secrets: map[string]session.SecretSource{"token": {File: secret}},
		Outputs: map[string]session.OutputTarget{"out": {File: dest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	req := engine.Request{
		Dockerfile: "Dockerfile", BuildContexts: map[string]string{"named": "local:named"}, BuildArgs: map[string]string{"SOURCE_DATE_EPOCH": epoch},
		Outputs: []engine.Output{{Type: "oci", Attrs: map[string]string{"rewrite-timestamp": "true", "source-date-epoch": epoch}, Dest: "out"}},
	}
	if _, err := e.Build(context.Background(), req, s, nil); err != nil {
		diag.Render(os.Stderr, err)
		t.Fatal(err)
	}
}

func TestClientsShowErrors(t *testing.T) {
	buildctl := tool(t, "buildctl")
	addr, e := serve(t, Options{})
	base(t, e)
	dir := t.TempDir()
	for name, x := range map[string]struct{ file, want string }{
		"run":         {"FROM base\nRUN exit 7\n", `process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`},
		"instruction": {"FROM base\nCOPPY a b\n", "unknown instruction: COPPY"},
		"entitlement": {"FROM base\nRUN --security=insecure true\n", "entitlement security.insecure is not allowed"},
		"copy":        {"FROM base\nCOPY nope /\n", `"/nope": not found`},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(x.file), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := run(t, dir, []string{"BUILDKIT_HOST=" + addr}, buildctl, "build", "--frontend=dockerfile.v0", "--local=context=.", "--local=dockerfile=.")
			if err == nil || !strings.Contains(out, x.want) || !strings.Contains(out, ">>>") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
