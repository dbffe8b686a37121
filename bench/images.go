package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// world is what all workloads have in common.
type world struct {
	ctx      context.Context
	disk     *disk
	scale    float64
	verbose  bool
	registry *daemon
	host     string // of the registry
	serial   int    // makes names and contents that were never seen before
}

func (w *world) base() string   { return w.host + "/bench/busybox:1" }
func (w *world) debian() string { return w.host + "/bench/debian:12" }

// serve starts a registry on the disk.
func (w *world) serve() error {
	if err := os.MkdirAll(w.disk.path("home"), 0o755); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.host = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	conf := w.disk.path("registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", w.disk.path("registry"), w.host)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	w.registry, err = w.startDaemon(listening("tcp", w.host), "docker-registry", "serve", conf)
	return err
}

// pushBase puts the base images into the registry. Debian's is kept in dir, for it takes a while to make.
func (w *world) pushBase(dir string, debian bool) error {
	small, err := busybox()
	if err != nil {
		return err
	}
	if err := w.push(w.base(), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(small)), nil }, "/bin/sh"); err != nil || !debian {
		return err
	}
	rootfs := filepath.Join(dir, "debian-12-python3.tar")
	if _, err := os.Stat(rootfs); err != nil {
		fmt.Fprintln(os.Stderr, "bench: making the Debian base image")
		// Without recommended packages, and without the perl that only usrmerge needs: 174 MB, 69 MB as gzip.
		cmd := exec.CommandContext(w.ctx, "mmdebstrap", "--variant=minbase", "--format=tar", `--aptopt=APT::Install-Recommends "false"`,
			"--include=ca-certificates,curl,python3,usr-is-merged",
			`--customize-hook=chroot "$1" dpkg --purge usrmerge libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl perl perl-modules-5.36 libperl5.36`,
			"bookworm", rootfs+".part")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("mmdebstrap: %w", err)
		}
		if err := os.Rename(rootfs+".part", rootfs); err != nil {
			return err
		}
	}
	return w.push(w.debian(), func() (io.ReadCloser, error) { return os.Open(rootfs) }, "/bin/bash")
}

// push makes an image of one layer.
func (w *world) push(ref string, open tarball.Opener, cmd string) error {
	l, err := tarball.LayerFromOpener(open)
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64", RootFS: rootfs(img), History: []v1.History{{CreatedBy: "bench"}},
		Config: v1.Config{Cmd: []string{cmd}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
	})
	if err != nil {
		return err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	return remote.Write(r, img, remote.WithContext(w.ctx))
}

func rootfs(img v1.Image) v1.RootFS {
	c, err := img.ConfigFile()
	if err != nil {
		return v1.RootFS{}
	}
	return c.RootFS
}

// busybox makes the tar of a root file system around the machine's static busybox.
func busybox() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: install busybox-static", err)
	}
	bin, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if e := tw.WriteHeader(&h); e != nil {
			err = e
		}
		if _, e := io.WriteString(tw, data); e != nil {
			err = e
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "root", "tmp", "usr", "usr/bin"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(bin))
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\n")
	if e := tw.Close(); e != nil {
		err = e
	}
	return buf.Bytes(), err
}
