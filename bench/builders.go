package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// builder is a program under test.
type builder interface {
	name() string
	// start begins with empty state; stop ends and removes it.
	start() error
	stop() error
	// build returns the command that builds a directory as an image with that name.
	build(dir, image string) []string
	// export returns the command that brings the image that build made out: to the registry in its name, or to a file.
	// Nil means that the builder has no such way.
	export(to kind, dir, image, file string) []string
}

// cacher is a builder that can keep its cache in a registry.
type cacher interface {
	// caches returns what is added to the command of build or export so that all steps go to a cache, and so that they are looked
	// for there.
	caches(ref string) (to, from []string)
}

// kind is where an image goes.
type kind string

const (
	toRegistry kind = "registry"
	toDocker   kind = "docker" // an archive for docker load
	toOCI      kind = "oci"    // an OCI archive, uncompressed
	toOCIZstd  kind = "oci-zstd"
)

// builders returns Strata and those of the wanted peers that are installed.
func (w *world) builders(strata string, peers []string) ([]builder, error) {
	out := []builder{&strataBuilder{w: w, bin: strata, root: w.disk.path("strata")}}
	for _, p := range peers {
		var b builder
		var err error
		switch p {
		case "buildctl":
			b, err = w.newBuildkit()
		case "docker":
			b, err = w.newDocker()
		case "buildah":
			b, err = w.newBuildah()
		default:
			return nil, fmt.Errorf("no such peer: %s: there are buildctl, docker and buildah", p)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: without %s: %v\n", p, err)
			continue
		}
		out = append(out, b)
	}
	return out, nil
}

type strataBuilder struct {
	w         *world
	bin, root string
	d         *daemon
}

func (b *strataBuilder) name() string { return "strata" }

func (b *strataBuilder) start() error {
	if err := b.stop(); err != nil {
		return err
	}
	ready := func() bool {
		out, err := exec.Command(b.bin, "--root", b.root, "daemon", "status").Output()
		return err == nil && !strings.HasPrefix(string(out), "no engine")
	}
	var err error
	b.d, err = b.w.startDaemon(ready, b.bin, "--root", b.root, "daemon", "serve")
	return err
}

func (b *strataBuilder) stop() error {
	b.d.stop()
	b.d = nil
	return wipe(b.root)
}

func (b *strataBuilder) build(dir, image string) []string {
	return []string{b.bin, "--root", b.root, "build", "--network", "host", "--allow", "network.host", "--progress", "plain", "-t", image, dir}
}

func (b *strataBuilder) export(to kind, dir, image, file string) []string {
	switch to {
	case toRegistry:
		return append(b.build(dir, image), "--push")
	case toDocker:
		return append(b.build(dir, image), "--output", "type=docker,dest="+file)
	case toOCI:
		return append(b.build(dir, image), "--output", "type=oci,compression=uncompressed,dest="+file)
	}
	return append(b.build(dir, image), "--output", "type=oci,compression=zstd,dest="+file)
}

func (b *strataBuilder) caches(ref string) (to, from []string) {
	return []string{"--cache-to", "type=registry,mode=max,ref=" + ref}, []string{"--cache-from", "type=registry,ref=" + ref}
}

// tool finds a Go tool of the tools module and builds it.
func tool(name string) (string, error) {
	cmd := exec.Command("go", "tool", "-n", name)
	cmd.Dir = "tools"
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go tool -n %s in tools: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

type buildkitBuilder struct {
	w                 *world
	ctl, daemon, root string
	conf, socket      string
	d                 *daemon
}

func (w *world) newBuildkit() (builder, error) {
	b := &buildkitBuilder{w: w, root: w.disk.path("buildkit"), conf: w.disk.path("buildkit.toml"), socket: w.disk.path("bk.sock")}
	var err error
	if b.ctl, err = tool("buildctl"); err != nil {
		return nil, err
	}
	if b.daemon, err = tool("buildkitd"); err != nil {
		return nil, err
	}
	// No garbage collection while something is measured, as for all others.
	text := fmt.Sprintf("[worker.oci]\n  gc = false\n  snapshotter = \"overlayfs\"\n  networkMode = \"host\"\n[worker.containerd]\n  enabled = false\n[registry.%q]\n  http = true\n", w.host)
	return b, os.WriteFile(b.conf, []byte(text), 0o644)
}

func (b *buildkitBuilder) name() string { return "buildctl" }

func (b *buildkitBuilder) start() error {
	if err := b.stop(); err != nil {
		return err
	}
	var err error
	b.d, err = b.w.startDaemon(listening("unix", b.socket), b.daemon, "--config", b.conf, "--root", b.root, "--addr", "unix://"+b.socket)
	return err
}

func (b *buildkitBuilder) stop() error {
	b.d.stop()
	b.d = nil
	_ = os.Remove(b.socket) // it may not exist
	return wipe(b.root)
}

func (b *buildkitBuilder) build(dir, _ string) []string {
	return []string{b.ctl, "--addr", "unix://" + b.socket, "build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir}
}

func (b *buildkitBuilder) export(to kind, dir, image, file string) []string {
	out := map[kind]string{
		toRegistry: "type=image,push=true,name=" + image,
		toDocker:   "type=docker,name=" + image + ",dest=" + file,
		toOCI:      "type=oci,compression=uncompressed,dest=" + file,
		toOCIZstd:  "type=oci,compression=zstd,dest=" + file,
	}[to]
	return append(b.build(dir, image), "--output", out)
}

func (b *buildkitBuilder) caches(ref string) (to, from []string) {
	return []string{"--export-cache", "type=registry,mode=max,ref=" + ref}, []string{"--import-cache", "type=registry,ref=" + ref}
}

type dockerBuilder struct {
	w            *world
	root, socket string
	d            *daemon
}

func (w *world) newDocker() (builder, error) {
	for _, p := range []string{"docker", "dockerd"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, err
		}
	}
	return &dockerBuilder{w: w, root: w.disk.path("docker"), socket: w.disk.path("docker.sock")}, nil
}

func (b *dockerBuilder) name() string { return "docker" }

func (b *dockerBuilder) start() error {
	if err := b.stop(); err != nil {
		return err
	}
	var err error
	b.d, err = b.w.startDaemon(listening("unix", b.socket), "dockerd", "-H", "unix://"+b.socket, "--data-root", b.root+"/data", "--exec-root", b.root+"/exec",
		"--pidfile", b.root+".pid", "--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none")
	return err
}

func (b *dockerBuilder) stop() error {
	b.d.stop()
	b.d = nil
	_ = os.Remove(b.socket) // it may not exist
	return wipe(b.root)
}

func (b *dockerBuilder) docker(args ...string) []string {
	return append([]string{"docker", "-H", "unix://" + b.socket}, args...)
}

func (b *dockerBuilder) build(dir, image string) []string {
	return b.docker("build", "--network", "host", "-t", image, dir)
}

func (b *dockerBuilder) export(to kind, _, image, file string) []string {
	switch to {
	case toRegistry:
		return b.docker("push", image)
	case toDocker:
		return b.docker("save", "-o", file, image)
	}
	return nil
}

type buildahBuilder struct {
	w    *world
	root string
	conf string
}

func (w *world) newBuildah() (builder, error) {
	if _, err := exec.LookPath("buildah"); err != nil {
		return nil, err
	}
	b := &buildahBuilder{w: w, root: w.disk.path("buildah"), conf: w.disk.path("registries.conf")}
	policy := filepath.Join(w.disk.path("home"), ".config/containers")
	if err := os.MkdirAll(policy, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(policy, "policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644); err != nil {
		return nil, err
	}
	return b, os.WriteFile(b.conf, fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", w.host), 0o644)
}

func (b *buildahBuilder) name() string { return "buildah" }
func (b *buildahBuilder) start() error { return b.stop() }
func (b *buildahBuilder) stop() error  { return wipe(b.root) }

func (b *buildahBuilder) buildah(args ...string) []string {
	return append([]string{"buildah", "--root", b.root + "/root", "--runroot", b.root + "/run", "--storage-driver", "overlay", "--registries-conf", b.conf}, args...)
}

func (b *buildahBuilder) build(dir, image string) []string {
	return b.buildah("build", "--layers", "--runtime", "runc", "--network", "host", "-t", image, dir)
}

func (b *buildahBuilder) export(to kind, _, image, file string) []string {
	switch to {
	case toRegistry:
		return b.buildah("push", image, "docker://"+image)
	case toDocker:
		return b.buildah("push", image, "docker-archive:"+file)
	case toOCIZstd:
		return b.buildah("push", "--compression-format", "zstd", image, "oci-archive:"+file)
	}
	return nil
}
