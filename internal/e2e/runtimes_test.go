package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// An image that uses what images can have is given to the runtimes that people have, in each form that they take. It must
// run there, and say the same everywhere.

const runtimeDockerfile = `# syntax=docker/dockerfile:1
FROM base AS low
ENV PATH=/bin:/usr/bin
RUN mkdir -p /usr/bin /opt/full /opt/app/data && echo old >/opt/full/old && echo one >/opt/app/data/one
COPY <<passwd <<group /etc/
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:app:/opt/app:/bin/sh
passwd
root:x:0:
app:x:1000:
extra:x:2000:app
group

FROM low
LABEL org.example.kind=test org.example.text="two words"
ENV GREETING=hello TARGET="the world"
RUN rm /bin/vi && rm -r /opt/full && mkdir /opt/full && echo new >/opt/full/new
COPY --chown=0:extra --chmod=640 secret /opt/app/
COPY --chmod=4755 euid /usr/bin/
COPY --link --chmod=755 entry /usr/bin/entry
RUN ln -s ../../usr/bin/entry /opt/app/link && ln -s /opt/app /srv && ln /opt/app/data/one /opt/app/data/two
WORKDIR /opt/app/work
VOLUME /opt/app/volume
EXPOSE 8080/tcp
HEALTHCHECK --interval=30s --retries=2 CMD ["true"]
STOPSIGNAL SIGINT
USER app:extra
ENTRYPOINT ["/opt/app/link"]
CMD ["first", "two words"]
`

const runtimeEntry = `#!/bin/sh
printf '%s|' "$@"; echo
echo "$GREETING $TARGET, in $(pwd) as $(id -u):$(id -g)"
euid
ls /bin/vi /opt/full/old 2>/dev/null
cat /opt/full/new /srv/data/two /opt/app/secret
stat -c '%n %u:%g %a %h' /opt/app/secret /opt/app/data/one /usr/bin/euid /opt/app/work
`

// runtimeReport is what the entry point prints: that of the image's own arguments.
const runtimeReport = `first|two words|
hello the world, in /opt/app/work as 1000:2000
uid 1000, euid 0
new
one
private
/opt/app/secret 0:2000 640 1
/opt/app/data/one 0:0 644 2
/usr/bin/euid 0:0 4755 1
/opt/app/work 0:0 755 2
`

const runtimeProgram = `package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("uid %d, euid %d\n", os.Getuid(), os.Geteuid()) }
`

// photo is the image in the forms that runtimes take.
type photo struct {
	id       string            // digest of the configuration
	files    map[string]string // archives: docker, legacy, docker-gzip, oci, oci-zstd, oci-plain
	registry string            // host with the tags gzip and zstd of "app"; "" if there is none
}

// takePhoto builds the image.
func takePhoto(t *testing.T) *photo {
	t.Helper()
	s := newSite(t)
	s.base()
	s.write("Dockerfile", runtimeDockerfile)
	s.write("entry", runtimeEntry)
	s.write("secret", "private\n")
	source := filepath.Join(t.TempDir(), "euid.go")
	if err := os.WriteFile(source, []byte(runtimeProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(s.dir, "euid"), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s.ok("build", "-t", "app:1", "--iidfile", "id", ".")
	id, err := os.ReadFile(filepath.Join(s.dir, "id"))
	if err != nil {
		t.Fatal(err)
	}
	p := &photo{id: strings.TrimSpace(string(id)), files: map[string]string{}}
	args := []string{"build", "-t", "app:1"}
	dir := t.TempDir()
	for form, attributes := range map[string]string{
		"docker": "type=docker", "legacy": "type=docker,legacy=1", "docker-gzip": "type=docker,compression=gzip",
		"oci": "type=oci", "oci-zstd": "type=oci,compression=zstd", "oci-plain": "type=oci,compression=uncompressed",
	} {
		p.files[form] = filepath.Join(dir, form+".tar")
		args = append(args, "-o", attributes+",dest="+p.files[form])
	}
	if p.registry = serveRegistry(t); p.registry != "" {
		for _, c := range []string{"gzip", "zstd"} {
			args = append(args, "-o", fmt.Sprintf("type=registry,compression=%s,name=%s/app:%s", c, p.registry, c))
		}
	}
	s.ok(append(args, ".")...)
	return p
}

// serveRegistry starts Debian's registry and returns its host, "" if it is not installed.
func serveRegistry(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		return ""
	}
	dir, host := t.TempDir(), freeAddress(t)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %q}\n", filepath.Join(dir, "data"), host)
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon(t, "tcp", host, "docker-registry", "serve", filepath.Join(dir, "config.yml"))
	return host
}

// tags are the image's names in the registry.
func (p *photo) tags(t *testing.T) []string {
	if p.registry == "" {
		t.Log("docker-registry is not installed: nothing is pulled")
		return nil
	}
	return []string{p.registry + "/app:gzip", p.registry + "/app:zstd"}
}

// says compares what a container printed with what it must print.
func says(t *testing.T, form, got string) {
	t.Helper()
	if got = strings.ReplaceAll(got, "\r\n", "\n"); got != runtimeReport {
		t.Errorf("%s: the container says\n%s\nnot\n%s", form, got, runtimeReport)
	}
}

// runtimeConfig is the image's configuration in the words of docker inspect and of the specification.
type runtimeConfig struct {
	User, WorkingDir, StopSignal string
	Env, Entrypoint, Cmd         []string
	Labels                       map[string]string
	Volumes, ExposedPorts        map[string]struct{}
	Healthcheck                  *struct {
		Test     []string
		Interval int64
		Retries  int
	}
}

// hasConfig checks a configuration.
func hasConfig(t *testing.T, form string, raw []byte, health bool) {
	t.Helper()
	var c runtimeConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Errorf("%s: %v\n%s", form, err, raw)
		return
	}
	c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, "MARK=") })
	want := runtimeConfig{
		User: "app:extra", WorkingDir: "/opt/app/work", StopSignal: "SIGINT",
		Env:        []string{"PATH=/bin:/usr/bin", "GREETING=hello", "TARGET=the world"},
		Entrypoint: []string{"/opt/app/link"}, Cmd: []string{"first", "two words"},
		Labels:  map[string]string{"org.example.kind": "test", "org.example.text": "two words"},
		Volumes: map[string]struct{}{"/opt/app/volume": {}}, ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}
	if health {
		if h := c.Healthcheck; h == nil || !slices.Equal(h.Test, []string{"CMD", "true"}) || h.Interval != 30e9 || h.Retries != 2 {
			t.Errorf("%s: the health check is %+v", form, h)
		}
	}
	c.Healthcheck = nil
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%s: the configuration is\n%+v\nnot\n%+v", form, c, want)
	}
}

func TestRuntimes(t *testing.T) {
	needBuild(t)
	p := takePhoto(t)
	for name, run := range map[string]func(*testing.T, *photo){"docker": inDocker, "podman": inPodman, "containerd": inContainerd, "skopeo": inSkopeo, "umoci": inUmoci} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, p)
		})
	}
}

func inDocker(t *testing.T, p *photo) {
	needTools(t, "dockerd", "docker")
	root := shortTemp(t)
	sock := root + "/d.sock"
	daemon(t, "unix", sock, "dockerd", "-H", "unix://"+sock, "--data-root", root+"/data", "--exec-root", root+"/exec", "--pidfile", root+"/pid",
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--exec-opt", "native.cgroupdriver=cgroupfs")
	docker := tool{"docker", "--config", root + "/config", "-H", "unix://" + sock}
	check := func(form, name string) {
		t.Helper()
		if got := strings.TrimSpace(docker.run(t, "image", "inspect", "--format", "{{.Id}}", name)); got != p.id {
			t.Errorf("%s: the image's id is %s, not %s", form, got, p.id)
		}
		hasConfig(t, form, []byte(docker.run(t, "image", "inspect", "--format", "{{json .Config}}", name)), true)
		says(t, form, docker.run(t, "run", "--rm", "--network=none", name))
		if got := docker.run(t, "run", "--rm", "--network=none", "--entrypoint=ls", name, "-d", "/opt/app/volume"); got != "/opt/app/volume\n" {
			t.Errorf("%s: the volume: %q", form, got)
		}
		docker.run(t, "image", "rm", name)
	}
	for _, form := range []string{"docker", "legacy", "docker-gzip"} { // OCI archives without manifest.json: since Docker 25
		docker.run(t, "load", "-q", "-i", p.files[form])
		check(form, "app:1")
	}
	for _, name := range p.tags(t) {
		if strings.HasSuffix(name, ":zstd") {
			continue // since Docker 23
		}
		docker.run(t, "pull", "-q", name)
		check(name, name)
	}
}

func inPodman(t *testing.T, p *photo) {
	needTools(t, "podman")
	root := shortTemp(t)
	podman := tool{
		"podman", "--root", root + "/r", "--runroot", root + "/s", "--tmpdir", root + "/t", "--storage-driver", "overlay", "--events-backend", "none",
		"--cgroup-manager", "cgroupfs", "--runtime", "runc", // crun knows either version of cgroups, not both at once
	}
	check := func(form, name string) {
		t.Helper()
		if got := strings.TrimSpace(podman.run(t, "image", "inspect", "--format", "{{.Id}}", name)); "sha256:"+got != p.id {
			t.Errorf("%s: the image's id is %s, not %s", form, got, p.id)
		}
		hasConfig(t, form, []byte(podman.run(t, "image", "inspect", "--format", "{{json .Config}}", name)), false)
		// The limits are such that no privilege is needed to set them.
		says(t, form, podman.run(t, "run", "--rm", "--network=none", "--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000", name))
		podman.run(t, "image", "rm", name)
	}
	for form, path := range p.files {
		podman.run(t, "load", "-q", "-i", path)
		check(form, "app:1")
	}
	for _, name := range p.tags(t) {
		podman.run(t, "pull", "-q", "--tls-verify=false", name)
		check(name, name)
	}
}

func inContainerd(t *testing.T, p *photo) {
	needTools(t, "containerd", "ctr")
	root := shortTemp(t)
	sock, conf := root+"/c.sock", root+"/config.toml"
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		root+"/root", root+"/state", sock, sock+".ttrpc")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	daemon(t, "unix", sock, "containerd", "--config", conf)
	check := func(ctr tool, form, name string) {
		t.Helper()
		if got := ctr.run(t, "images", "check"); !strings.Contains(got, "complete") {
			t.Errorf("%s: %s", form, got)
		}
		says(t, form, ctr.run(t, "run", "--rm", "--allow-new-privs", "--runc-root", root+"/runc", name, "app"))
	}
	for form, path := range p.files {
		ctr := tool{"ctr", "--address", sock, "--namespace", form}
		ctr.run(t, "images", "import", path)
		check(ctr, form, "docker.io/library/app:1")
	}
	for i, name := range p.tags(t) {
		ctr := tool{"ctr", "--address", sock, "--namespace", fmt.Sprint("pull", i)}
		ctr.run(t, "images", "pull", "--plain-http", name)
		check(ctr, name, name)
	}
}

func inSkopeo(t *testing.T, p *photo) {
	needTools(t, "skopeo")
	skopeo := tool{"skopeo"}
	check := func(from string) {
		t.Helper()
		raw := skopeo.run(t, "inspect", "--tls-verify=false", "--config", from)
		var c struct {
			Config json.RawMessage
		}
		if err := json.Unmarshal([]byte(raw), &c); err != nil {
			t.Errorf("%s: %v", from, err)
			return
		}
		hasConfig(t, from, c.Config, false)
		// A copy reads and verifies every layer.
		copied := "dir:" + t.TempDir()
		skopeo.run(t, "copy", "-q", "--src-tls-verify=false", from, copied)
		if got := skopeo.run(t, "inspect", "--config", "--raw", copied); "sha256:"+sha256Hex(strings.TrimSpace(got)) != p.id {
			t.Errorf("%s: the copy's configuration is\n%s", from, got)
		}
	}
	for form, path := range p.files {
		if strings.HasPrefix(form, "oci") {
			check("oci-archive:" + path)
		} else {
			check("docker-archive:" + path)
		}
	}
	for _, name := range p.tags(t) {
		check("docker://" + name)
	}
}

func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// inUmoci unpacks a layout with a tool that applies layers in its own way.
func inUmoci(t *testing.T, p *photo) {
	needTools(t, "umoci", "tar")
	layout, bundle := t.TempDir(), filepath.Join(t.TempDir(), "bundle")
	tool{"tar"}.run(t, "-xf", p.files["oci"], "-C", layout)
	tool{"umoci"}.run(t, "unpack", "--image", layout+":1", bundle)
	root := filepath.Join(bundle, "rootfs")
	for path, want := range map[string]string{
		"opt/app/secret": "-rw-r----- 0:2000 1", "usr/bin/euid": "urwxr-xr-x 0:0 1", "opt/app/link": "Lrwxrwxrwx 0:0 1", "opt/app/work": "drwxr-xr-x 0:0 2",
		"opt/app/data/one": "-rw-r--r-- 0:0 2", "opt/app/data/two": "-rw-r--r-- 0:0 2", "opt/full/new": "-rw-r--r-- 0:0 1", "bin/vi": "", "opt/full/old": "",
	} {
		got := ""
		if info, err := os.Lstat(filepath.Join(root, path)); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			got = fmt.Sprintf("%v %d:%d %d", info.Mode(), st.Uid, st.Gid, st.Nlink)
		}
		if got != want {
			t.Errorf("%s is %q, not %q", path, got, want)
		}
	}
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, _ error) error {
		if strings.HasPrefix(filepath.Base(path), ".wh.") {
			t.Errorf("%s is a file", path)
		}
		return nil
	})
}
