package source

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/restrict"
)

// systemPrograms are where systems have programs and their libraries, besides the directories of PATH.
var systemPrograms = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"}

// systemFiles are what programs read that resolve names, load libraries and check certificates. Keys of the machine are in none.
var systemFiles = []string{
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path",
	"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols",
	"/etc/localtime", "/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/ssl/openssl.cnf", "/etc/pki/ca-trust", "/etc/pki/tls/certs",
	"/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/ca-certificates", "/var/lib/ca-certificates", "/etc/crypto-policies", "/etc/gnutls",
	"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2", "/proc/sys/crypto/fips_enabled", "/sys/devices/system/cpu/online",
}

// Ports that git needs besides its way to http servers: names over TCP, ssh and git's own protocol.
var gitPorts = []uint16{53, 22, 9418}

// gitRights are what git may do: read programs and what they need, change its own directory, and reach the remote. What it is told to
// use besides is added by allow.
func gitRights(run *gitRunner, remote remoteURL) *restrict.Rights {
	r := &restrict.Rights{Programs: slices.Clone(systemPrograms), Read: slices.Clone(systemFiles)}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) && filepath.Clean(dir) != "/" {
			r.Programs = append(r.Programs, dir)
		}
	}
	if real, err := filepath.EvalSymlinks(run.path); err == nil { // it may be a package of its own
		dir := filepath.Dir(real)
		r.Programs = append(r.Programs, dir)
		for _, beside := range []string{"lib", "libexec", "share"} {
			r.Programs = append(r.Programs, filepath.Join(filepath.Dir(dir), beside))
		}
	}
	r.Read = append(r.Read, filepath.SplitList(os.Getenv("SSL_CERT_FILE"))...)
	r.Read = append(r.Read, filepath.SplitList(os.Getenv("SSL_CERT_DIR"))...)
	if run.way != nil {
		r.Ports = append(slices.Clone(gitPorts), uint16(run.way.listener.Addr().(*net.TCPAddr).Port))
		if port := remotePort(remote.arg); port != 0 {
			r.Ports = append(r.Ports, port)
		}
	}
	run.rights = r
	run.allow(run.dir)
	return r
}

// remotePort is the port of a remote that is not reached by http; 0 = the protocol's.
func remotePort(remote string) uint16 {
	u, err := url.Parse(remote)
	if err != nil || u.Scheme != "ssh" && u.Scheme != "git" {
		return 0
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// allow lets git change directories, which must exist.
func (r *gitRunner) allow(dirs ...string) {
	r.rights.Write = append(r.rights.Write, dirs...)
	for _, dir := range dirs {
		r.rights.Search = r.rights.Search || os.Geteuid() == 0 && !rootEnters(dir)
	}
}

// rootEnters reports whether root without capabilities gets to a directory by the modes of those above it. Those of a user's home may
// be closed to others.
func rootEnters(dir string) bool {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return false
		}
		bit := uint32(0o001)
		switch {
		case st.Uid == 0:
			bit = 0o100
		case st.Gid == 0:
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return false
		}
		if dir == "/" || !strings.HasPrefix(dir, "/") {
			return true
		}
	}
}
