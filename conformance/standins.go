package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\n" +
		"mail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
		"operator:x:37:37:Operator:/var:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nwheel:x:10:root\n" +
		"www-data:x:33:\noperator:x:37:\nusers:x:100:\nnobody:x:65534:\n"
	shadow      = "root:*:::::::\nnobody:*:::::::\n"
	pathEnv     = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	buildREADME = "# BuildKit\n\nThis page stands in for BuildKit's README.\n"
	mobyREADME  = "The Moby Project\n================\n\nThis page stands in for Moby's README.\n"
)

// standIns are the images that the tests ask for, by the names under which the mirror holds them.
type standIns struct {
	images   map[string]*imageSpec
	gateway  *imageSpec        // the Dockerfile frontend as an image
	bundles  map[string][]byte // what the stand-in apk adds
	identity string            // digest over all images
}

// tools are the programs that go into images.
type tools struct {
	busybox  string // Debian's busybox-static
	applets  string // ./applets: what that busybox lacks
	frontend string // upstream's Dockerfile frontend
}

func makeStandIns(t tools) (*standIns, error) {
	base, err := busyboxEntries(t)
	if err != nil {
		return nil, err
	}
	sh := containerConfig{Env: []string{pathEnv}, Cmd: []string{"sh"}}
	busybox := func(label string) *imageSpec {
		return &imageSpec{layers: [][]entry{base.busybox("etc/release-of-stand-in", label)}, config: sh}
	}
	s := &standIns{bundles: map[string][]byte{}, images: map[string]*imageSpec{
		"library/busybox:latest":        busybox("latest"),
		"library/busybox:stable":        busybox("stable"),
		"library/busybox_amd64:latest":  busybox("compatibility"),
		"library/busybox:stable-musl":   busybox("stable-musl"),
		"library/busybox:1.34.1-uclibc": busybox("1.34.1-uclibc"),
		"library/alpine:latest":         {layers: [][]entry{base.alpine()}, config: containerConfig{Env: []string{pathEnv}, Cmd: []string{"/bin/sh"}}},
		"amd64/debian:bullseye-20230109-slim": {
			layers: [][]entry{base.debian()}, config: containerConfig{Env: []string{pathEnv}, Cmd: []string{"bash"}},
			history: []history{ // the times are those that upstream's test expects
				{Created: time.Date(2023, 1, 11, 2, 34, 44, 402266175, time.UTC), CreatedBy: "/bin/sh -c #(nop) ADD file:stand-in in / "},
				{Created: time.Date(2023, 1, 11, 2, 34, 44, 829692296, time.UTC), CreatedBy: `/bin/sh -c #(nop)  CMD ["bash"]`, EmptyLayer: true},
			},
		},
		"tonistiigi/test:nolayers":  {config: containerConfig{Env: []string{pathEnv}}},
		"tonistiigi/hellofs:latest": {layers: [][]entry{{base.applet("hellofs")}}, config: containerConfig{Env: []string{pathEnv}}},
		"cpuguy83/buildkit-foreign:latest": {
			layers: [][]entry{{{path: "foreign", mode: 0o644, content: []byte("foreign\n")}}, {{path: "local", mode: 0o644, content: []byte("local\n")}}},
			config: containerConfig{Env: []string{pathEnv}}, foreign: map[int]string{0: "https://example.com/foreign/"}, plain: true,
		},
		"docker/buildkit-syft-scanner:stable-1": {
			layers: [][]entry{base.busybox("etc/release-of-stand-in", "scanner")},
			config: containerConfig{Env: []string{pathEnv}, Cmd: []string{"sh", "-c", scannerScript}},
		},
	}}
	frontend, err := os.ReadFile(t.frontend)
	if err != nil {
		return nil, err
	}
	s.gateway = &imageSpec{
		layers: [][]entry{{{path: "bin/", mode: 0o755}, {path: "bin/dockerfile-frontend", mode: 0o755, content: frontend}}},
		config: containerConfig{
			Env: []string{pathEnv}, Entrypoint: []string{"/bin/dockerfile-frontend"},
			Labels: map[string]string{ // as in upstream's frontend/dockerfile/cmd/dockerfile-frontend/Dockerfile
				"moby.buildkit.frontend.network.none": "true",
				"moby.buildkit.frontend.caps": "moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts," +
					"moby.buildkit.frontend.gitquerystring,moby.buildkit.frontend.contexts.zstd",
			},
		},
	}
	if err := s.gateway.build(); err != nil {
		return nil, err
	}
	var all strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.images)) {
		if err := s.images[name].build(); err != nil {
			return nil, fmt.Errorf("stand-in image %s: %w", name, err)
		}
		fmt.Fprintln(&all, name, s.images[name].desc.Digest)
	}
	s.identity = digestOf([]byte(all.String()))
	for name, packages := range bundles {
		if s.bundles[name], err = makeBundle(packages); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// scannerScript writes what BuildKit expects of an SBOM scanner (docs/attestations/sbom-protocol.md).
const scannerScript = `cat >"$BUILDKIT_SCAN_DESTINATION/spdx.json" <<EOF
{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://spdx.dev/Document", "predicate": {"name": "stand-in"}}
EOF`

// rootFiles are the parts of the images that have a shell.
type rootFiles struct {
	box, applets []byte
	names        []string // busybox's applets
}

func busyboxEntries(t tools) (*rootFiles, error) {
	box, err := os.ReadFile(t.busybox)
	if err != nil {
		return nil, fmt.Errorf("%w (make conformance installs Debian's busybox-static)", err)
	}
	applets, err := os.ReadFile(t.applets)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(t.busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("the applets of %s: %w", t.busybox, err)
	}
	for from, to := range hidden {
		// Names stand in one sorted table, ended by zeros.
		old, renamed := []byte("\x00"+from+"\x00"), []byte("\x00"+to+"\x00")
		if bytes.Count(box, old) != 1 {
			return nil, fmt.Errorf("%s has not one applet %s", t.busybox, from)
		}
		box = bytes.Replace(box, old, renamed, 1)
	}
	return &rootFiles{box: box, applets: applets, names: strings.Fields(string(list))}, nil
}

// hidden are applets of busybox that get another name, in the same place of the alphabet, since its shell takes its own
// applets rather than what PATH has.
var hidden = map[string]string{"nc": "nb", "wget": "wgea"}

// own are the applets that ./applets gives, in all images with a shell.
var own = []string{"adduser", "addgroup", "nc", "ttysize", "wget"}

func directories(names ...string) []entry {
	out := make([]entry, 0, len(names))
	for _, name := range names {
		mode := int64(0o755)
		switch name {
		case "tmp", "var/tmp":
			mode = 0o1777
		case "root":
			mode = 0o700
		}
		out = append(out, entry{path: name + "/", mode: mode})
	}
	return out
}

func accounts() []entry {
	return []entry{
		{path: "etc/passwd", mode: 0o644, content: []byte(passwd)},
		{path: "etc/group", mode: 0o644, content: []byte(group)},
		{path: "etc/shadow", mode: 0o640, content: []byte(shadow)},
	}
}

// shell gives busybox and its applets as further names of it, and the own applets.
func (r *rootFiles) shell(link func(name string) entry) []entry {
	out := []entry{
		{path: "bin/busybox", mode: 0o755, content: r.box},
		{path: "bin/standin-applets", mode: 0o755, content: r.applets},
	}
	for _, name := range own {
		out = append(out, entry{path: "bin/" + name, symlink: "/bin/standin-applets"})
	}
	for _, name := range r.names {
		if name != "busybox" && !slices.Contains(own, name) {
			out = append(out, link(name))
		}
	}
	return out
}

func hardLink(name string) entry { return entry{path: "bin/" + name, mode: 0o755, link: "bin/busybox"} }
func softLink(name string) entry { return entry{path: "bin/" + name, symlink: "/bin/busybox"} }

// busybox has /dev but neither /proc nor /sys, as the public image (a test depends on it).
func (r *rootFiles) busybox(marker, content string) []entry {
	out := directories("bin", "dev", "etc", "home", "lib", "root", "tmp", "usr", "usr/bin", "usr/sbin", "var", "var/spool", "var/spool/mail", "var/www")
	out = append(out, symlink("lib64", "lib"), symlink("usr/bin/env", "../../bin/env"))
	out = append(out, r.shell(hardLink)...)
	out = append(out, accounts()...)
	return append(out, entry{path: marker, mode: 0o644, content: []byte(content + "\n")})
}

func (r *rootFiles) alpine() []entry {
	out := directories("bin", "dev", "etc", "etc/apk", "etc/ssl", "etc/ssl/certs", "home", "lib", "media", "media/cdrom", "mnt", "opt", "proc", "root", "run", "sbin", "srv",
		"sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/local", "usr/local/bin", "usr/sbin", "usr/share", "var", "var/cache", "var/tmp")
	out = append(out, r.shell(softLink)...)
	out = append(out, accounts()...)
	return append(out, symlink("sbin/apk", "/bin/standin-applets"), symlink("usr/bin/env", "/bin/env"),
		entry{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, content: []byte("# no authority is trusted\n")},
		symlink("etc/ssl/cert.pem", "certs/ca-certificates.crt"),
		entry{path: "etc/alpine-release", mode: 0o644, content: []byte("3.18.0\n")},
		entry{path: "etc/os-release", mode: 0o644, content: []byte("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.0\n")})
}

func (r *rootFiles) debian() []entry {
	out := directories("bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp",
		"usr", "usr/bin", "usr/sbin", "var", "var/tmp")
	out = append(out, r.shell(softLink)...)
	out = append(out, accounts()...)
	return append(out, entry{path: "etc/debian_version", mode: 0o644, content: []byte("11.6\n")})
}

func (r *rootFiles) applet(name string) entry {
	return entry{path: name, mode: 0o755, content: r.applets}
}

func symlink(name, target string) entry { return entry{path: name, symlink: target} }

// store fills a mirror directory (BUILDKIT_REGISTRY_MIRROR_DIR) and writes the frontend's layout beside it.
func (s *standIns) store(mirror, frontendTar string) error {
	if err := os.RemoveAll(mirror); err != nil {
		return err
	}
	for name, image := range s.images {
		if err := image.storeInRegistry(mirror, name); err != nil {
			return err
		}
	}
	for name, b := range s.bundles {
		if err := writeFile(filepath.Join(mirror, "apk", name), b, 0o644); err != nil {
			return err
		}
	}
	return s.gateway.storeAsLayout(frontendTar)
}
