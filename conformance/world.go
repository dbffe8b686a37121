package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// The world's addresses (RFC 2544's range for tests): the name server and every stand-in host but github.com, which is the
// second one.
const (
	hostAddr   = "198.18.0.1"
	githubAddr = "198.18.0.2"
)

// hosts are the stand-in hosts by name; the name server knows no other.
var hosts = map[string]string{
	"example.com":               hostAddr,
	"raw.githubusercontent.com": hostAddr,
	"registry-1.docker.io":      hostAddr,
	"auth.docker.io":            hostAddr,
	"dl-cdn.alpinelinux.org":    hostAddr,
	"github.com":                githubAddr,
}

// enter makes the world around this process, which must be in mount, network and process namespaces of its own: private
// /proc, /tmp, /run, /etc and /opt, a loopback, and one link with the stand-in hosts' addresses, through which everything
// else goes nowhere (a veth pair, the other end of which nobody reads).
func enter(upstreamDir string, authority []byte) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("/proc of the world: %w", err)
	}
	for _, dir := range []string{"/tmp", "/run", "/var/lib/cni"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/etc", "/opt"} {
		if err := shadowDir(dir); err != nil {
			return err
		}
	}
	if err := configure(upstreamDir, authority); err != nil {
		return err
	}
	return network()
}

// shadowDir puts a writable overlay over a directory: what is written there stays in the world.
func shadowDir(dir string) error {
	upper, work := filepath.Join("/run/world", dir), filepath.Join("/run/world", dir+".work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := syscall.Mount("overlay", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay on %s: %w", dir, err)
	}
	return nil
}

// configure writes the world's /etc and /opt.
func configure(upstreamDir string, authority []byte) error {
	const roots = "/etc/ssl/certs/ca-certificates.crt"
	certs, err := os.ReadFile(roots)
	if err != nil {
		return fmt.Errorf("%w (make conformance installs Debian's ca-certificates)", err)
	}
	// The file may be a link to elsewhere; the world's own must not be.
	for _, name := range []string{roots, "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	files := map[string]string{
		roots:                "",
		"/etc/resolv.conf":   "nameserver " + hostAddr + "\n",
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
	}
	files[roots] = string(certs) + "\n" + string(authority)
	for name, content := range files {
		if err := writeFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	// With cni.json in place a bridge is buildkitd's default network, as in upstream's own test image.
	for _, name := range []string{"cni.json", "dns-cni.conflist"} {
		if err := os.MkdirAll("/etc/buildkit", 0o755); err != nil {
			return err
		}
		if err := copyFile(filepath.Join("/etc/buildkit", name), filepath.Join(upstreamDir, "hack/fixtures", name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/opt/cni", 0o755); err != nil {
		return err
	}
	return relink("/usr/lib/cni", "/opt/cni/bin")
}

// network brings up the loopback and the link to nowhere.
func network() error {
	script := `set -e
ip link set lo up
ip link add uplink type veth peer name nowhere
ip addr add ` + hostAddr + `/16 dev uplink
ip addr add ` + githubAddr + `/16 dev uplink
ip link set nowhere up
ip link set uplink up
ip neigh add 198.18.255.254 lladdr 02:00:00:00:00:01 dev uplink
ip route add default via 198.18.255.254
echo 1 >/proc/sys/net/ipv4/ip_forward`
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the world's network: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
