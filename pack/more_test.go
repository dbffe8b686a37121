package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/outfile"
)

// Several images in one archive, each with the right tag.
func TestSeveralImages(t *testing.T) {
	w := workspace(t, Options{})
	var sets []archive.Set
	for i := range 3 {
		im := Assemble(nil, []*Layer{dirLayer(t, w, "x", map[string]string{"n": fmt.Sprint(i)})}, Change{})
		p := &packing{w: w, t: Target{Format: DockerArchive}}
		x, err := p.image(t.Context(), im, &Receipt{})
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, archive.Set{Images: []archive.Image{x}, Top: x.Manifest.Descriptor, Names: []string{fmt.Sprintf("docker.io/library/app:%d", i)}})
	}
	for name, list := range map[string]func([]archive.Set) ([]archive.Output, error){"oci": archive.OCIFiles, "docker": archive.DockerFiles, "legacy": archive.LegacyFiles} {
		files, err := list(sets)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := archive.WriteTar(t.Context(), &b, files); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(t.TempDir(), name+".tar")
		if err := os.WriteFile(p, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			v := workspace(t, Options{})
			if got := shows(t, v, open(t, v, fmt.Sprintf("%s:app:%d", p, i)))["n"]; got != fmt.Sprint(i) {
				t.Errorf("%s: app:%d holds %s", name, i, got)
			}
		}
		_, err = workspace(t, Options{}).Open(t.Context(), p)
		wantKind(t, err, diag.NotFound, "no such image")
	}
}

// A base that is given as a manifest and links to blobs elsewhere, as a lock file would.
func TestBaseOfLinkedBlobs(t *testing.T) {
	w := workspace(t, Options{})
	im := sample(t, w)
	from, to := t.TempDir(), t.TempDir()
	write(t, w, im, Target{Format: Dir, Path: from})
	list, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		p := filepath.Join(from, e.Name())
		if len(e.Name()) == 64 {
			err = os.Symlink(p, filepath.Join(to, e.Name()))
		} else {
			err = os.Rename(p, filepath.Join(to, e.Name()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	v := workspace(t, Options{})
	got := Assemble(open(t, v, "dir:"+to), []*Layer{dirLayer(t, v, "on", map[string]string{"on": "top"})}, Change{})
	if s := shows(t, v, got); s["on"] != "top" || s["etc/a"] != "a" {
		t.Errorf("it shows %v", s)
	}
}

// A layer bomb and a layer that is too many entries end with an error, not with the memory.
func TestBomb(t *testing.T) {
	p := filepath.Join(t.TempDir(), "bomb.tar.zst")
	err := outfile.Write(p, func(out io.Writer) error {
		z, err := layer.NewCompressor(out, layer.Compression{Type: layer.Zstd})
		if err != nil {
			return err
		}
		zeros := make([]byte, 4<<20)
		for range 300 { // 1.2 GB out of some 100 kB
			if _, err := z.Write(zeros); err != nil {
				return err
			}
		}
		return z.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	w := workspace(t, Options{})
	_, err = w.TarLayer(t.Context(), p)
	wantKind(t, err, diag.Exhausted, "fold")
}

// Who asks does not matter: a user's layer of files of his own is root's.
func TestAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another")
	}
	needs(t, "setpriv")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pack")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// A copy of this test that a user can run; it prints the digest of the directory.
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o777), os.WriteFile(dir+"/test", data, 0o755), os.MkdirAll(dir+"/tree/sub", 0o755), os.WriteFile(dir+"/tree/sub/f", []byte("x"), 0o644),
		os.Chown(dir+"/tree/sub/f", 65534, 65534),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	digest := func(prefix ...string) string {
		args := append(prefix, dir+"/test", "-test.run=^TestDigestOfDirectory$", "-test.v")
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PACK_DIRECTORY="+dir+"/tree", "TMPDIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		i := strings.Index(string(out), "sha256:")
		if i < 0 {
			t.Fatalf("no digest in %s", out)
		}
		return string(out)[i : i+71]
	}
	if a, b := digest(), digest("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"); a != b {
		t.Errorf("root's layer is %s, a user's %s", a, b)
	}
}

// TestDigestOfDirectory is what TestAsUser runs.
func TestDigestOfDirectory(t *testing.T) {
	dir := os.Getenv("PACK_DIRECTORY")
	if dir == "" {
		t.Skip("run by TestAsUser")
	}
	src, err := layer.FromPath(dir, layer.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	w := New(Options{})
	defer w.Close()
	im := Assemble(nil, []*Layer{NewLayer("x", src.Entries, layer.TarOptions{Epoch: &epoch})}, Change{Created: &epoch})
	r, err := w.Write(t.Context(), []*Image{im}, Target{Format: OCI, Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.Digest)
}

// serve starts a daemon and waits until it listens.
func serve(t *testing.T, socket string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &log, &log, &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
	})
	for range 1200 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Skipf("%s does not run here: %v\n%s", args[0], err, log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not listen: %s", args[0], log.String())
}

// room is a directory with a short name, for sockets.
func room(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 50 { // a daemon's mounts go away shortly after it
			if err = os.RemoveAll(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

func TestDocker(t *testing.T) {
	needs(t, "dockerd", "docker")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	files, _ := written(t)
	root := room(t)
	sock := root + "/d.sock"
	serve(t, sock, "dockerd", "-H", "unix://"+sock, "--data-root", root+"/data", "--exec-root", root+"/exec", "--pidfile", root+"/pid",
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", "vfs")
	for _, f := range []Format{DockerArchive, DockerLegacy} {
		docker := []string{"docker", "-H", "unix://" + sock}
		run(t, append(docker, "load", "-i", files[f])...)
		if got := run(t, append(docker, "image", "inspect", "--format", "{{.Config.User}} {{len .RootFS.Layers}}", "app:1")...); got != "1000:1000 3" {
			t.Errorf("%s: docker has %s", f, got)
		}
		saved := filepath.Join(t.TempDir(), "saved.tar")
		run(t, append(docker, "save", "-o", saved, "app:1")...)
		w := workspace(t, Options{})
		if got := shows(t, w, open(t, w, saved)); got["etc/b"] != "b" || got["layer-order"] != "a" {
			t.Errorf("docker save gives %v", got)
		}
		run(t, append(docker, "image", "rm", "app:1")...)
	}
}

func TestContainerd(t *testing.T) {
	needs(t, "containerd", "ctr")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	files, _ := written(t)
	root := room(t)
	sock := root + "/c.sock"
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", root+"/root", root+"/state", sock)
	if err := os.WriteFile(root+"/config.toml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	serve(t, sock, "containerd", "--config", root+"/config.toml")
	for f, p := range files {
		if f == OCI || f == Dir {
			continue
		}
		ctr := []string{"ctr", "--address", sock, "--namespace", string(f)}
		run(t, append(ctr, "images", "import", "--snapshotter", "native", p)...)
		if got := strings.Fields(run(t, append(ctr, "images", "list", "-q")...)); !slices.Contains(got, "docker.io/library/app:1") {
			t.Errorf("%s: %q", f, got)
		}
	}
}
