package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests give what the exporters write to the tools that users have. Each runs only where its tool is installed.

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	needRoot(t)
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// run runs a command and returns what it prints.
func run(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

// daemon starts a command in its own process group, waits until it listens, and stops it when the test ends.
func daemon(t *testing.T, socket string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Skipf("%s does not run here: %v\n%s", args[0], err, log.String())
		case <-ctx.Done():
			t.Fatalf("%s does not listen: %s", args[0], log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// shortTemp is a directory whose path fits into a socket's address, on a file system that overlayfs can be mounted on.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var last error
		for range 50 { // a daemon's mounts go away shortly after it, or stay
			mounts, _ := os.ReadFile("/proc/self/mounts")
			for line := range strings.Lines(string(mounts)) {
				if at := strings.Fields(line)[1]; strings.HasPrefix(at, dir+"/") {
					_ = syscall.Unmount(at, syscall.MNT_DETACH)
				}
			}
			if last = os.RemoveAll(dir); last == nil {
				return
			}
			if !errors.Is(last, syscall.EBUSY) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("left behind: %v", last)
	})
	return dir
}

// archives writes the test image in every form, and returns the files by attribute and the image's id.
func archives(t *testing.T) (files map[string]string, id string) {
	t.Helper()
	s := openStore(t)
	set := twoLayers(t, s)
	files = map[string]string{}
	for _, form := range []string{"legacy=0", "legacy=1", "compression=gzip", "compression=zstd"} {
		c := &client{}
		r := export(t, testEnv(s, c), set, output("docker", "name=app:1,other/app:2", form))
		files[form] = writeTemp(t, "app.tar", c.buf.Bytes())
		id = r.Metadata["containerimage.config.digest"]
	}
	return files, id
}

func TestSkopeo(t *testing.T) {
	needTools(t, "skopeo")
	files, id := archives(t)
	for form, p := range files {
		if form == "compression=zstd" {
			continue // newer than this skopeo's reader of docker archives
		}
		got := run(t, "skopeo", "inspect", "--config", "--raw", "docker-archive:"+p+":docker.io/library/app:1")
		if sum := string(hashOf([]byte(got))); sum != id {
			t.Errorf("%s: the configuration is %s, not %s", form, sum, id)
		}
		run(t, "skopeo", "copy", "docker-archive:"+p+":docker.io/other/app:2", "dir:"+t.TempDir())
	}
	run(t, "skopeo", "copy", "oci-archive:"+files["legacy=0"]+":1", "dir:"+t.TempDir())
	for _, c := range []string{"gzip", "zstd", "uncompressed"} {
		s := openStore(t)
		dir := t.TempDir()
		r := export(t, testEnv(s, &client{dir: dir}), twoLayers(t, s), output("oci", "tar=false", "name=app:1", "compression="+c))
		if got := run(t, "skopeo", "inspect", "--format", "{{.Digest}}", "oci:"+dir+":1"); got != r.Metadata["containerimage.digest"] {
			t.Errorf("%s: %s", c, got)
		}
		run(t, "skopeo", "copy", "oci:"+dir+":1", "dir:"+t.TempDir())
	}
}

func TestUmoci(t *testing.T) {
	needTools(t, "umoci")
	s := openStore(t)
	im := overlaid(t, s, amd64)
	dir, bundle := t.TempDir(), t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), &Set{Images: []Image{im}}, output("oci", "tar=false", "name=app:1"))
	run(t, "umoci", "unpack", "--image", dir+":1", bundle)
	if got := listing(t, filepath.Join(bundle, "rootfs")); !slices.Equal(got, overlaidFiles) {
		t.Errorf("%q", got)
	}
}

func TestPodmanLoads(t *testing.T) {
	needTools(t, "podman")
	files, id := archives(t)
	for form, p := range files {
		root := shortTemp(t)
		podman := []string{"podman", "--root", root + "/r", "--runroot", root + "/s", "--tmpdir", root + "/t", "--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"}
		run(t, append(podman, "load", "-i", p)...)
		got := run(t, append(podman, "image", "inspect", "--format", "{{.Id}} {{.RepoTags}}", "app:1")...)
		if !strings.HasPrefix(got, strings.TrimPrefix(id, "sha256:")) || !strings.Contains(got, "other/app:2") {
			t.Errorf("%s: %s", form, got)
		}
	}
}

func TestDockerLoads(t *testing.T) {
	needTools(t, "dockerd", "docker")
	files, id := archives(t)
	root := shortTemp(t)
	sock := root + "/d.sock"
	daemon(t, sock, "dockerd", "-H", "unix://"+sock, "--data-root", root+"/data", "--exec-root", root+"/exec", "--pidfile", root+"/pid",
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", "vfs")
	docker := []string{"docker", "-H", "unix://" + sock}
	for form, p := range files {
		if form == "compression=zstd" {
			continue // needs Docker 23
		}
		run(t, append(docker, "load", "-i", p)...)
		for _, n := range []string{"app:1", "other/app:2"} {
			if got := run(t, append(docker, "image", "inspect", "--format", "{{.Id}} {{len .RootFS.Layers}}", n)...); got != id+" 2" {
				t.Errorf("%s: %s is %s, not %s", form, n, got, id)
			}
		}
		run(t, append(docker, "image", "rm", "app:1", "other/app:2")...)
	}
}

func TestContainerdLoads(t *testing.T) {
	needTools(t, "containerd", "ctr")
	files, _ := archives(t)
	root := shortTemp(t)
	sock := root + "/c.sock"
	conf := filepath.Join(root, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", root+"/root", root+"/state", sock)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	daemon(t, sock, "containerd", "--config", conf)
	for form, p := range files {
		ctr := []string{"ctr", "--address", sock, "--namespace", strings.ReplaceAll(form, "=", "-")}
		run(t, append(ctr, "images", "import", "--snapshotter", "native", p)...)
		got := strings.Fields(run(t, append(ctr, "images", "list", "-q")...))
		slices.Sort(got)
		if !slices.Equal(got, []string{"docker.io/library/app:1", "docker.io/other/app:2"}) {
			t.Errorf("%s: %q", form, got)
		}
		run(t, append(ctr, "images", "check", "--snapshotter", "native")...)
	}
}
