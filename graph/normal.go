package graph

import (
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"golang.org/x/net/idna"

	"github.com/strata-build/strata/diag"
)

// Normalize returns a source whose address is in the one form that policies, keys and fetchers see. New calls it for every
// vertex; who uses a source without a vertex calls it first. An op that has the form already, or has no address, is returned
// as it is.
//
//   - Images: registry and repository in full, hosts in lower case, aliases of Docker Hub as docker.io, a tag or a digest.
//   - URLs: scheme and host in lower case, no default port, no dot segments, no fragment, and the login apart from the URL.
//   - Git remotes: the same, without empty segments of the path; a name of the form user@host:path stays one.
func Normalize(op Op) (Op, error) {
	switch o := op.(type) {
	case *Image:
		return normalImage(o)
	case *Blob:
		return normalBlob(o)
	case *HTTP:
		return normalHTTP(o)
	case *Git:
		return normalGit(o)
	}
	return op, nil
}

func normalImage(o *Image) (Op, error) {
	ref, err := NormalRef(o.Ref)
	if err != nil || ref == o.Ref {
		return o, err
	}
	c := *o
	c.Ref = ref
	return &c, nil
}

func normalBlob(o *Blob) (Op, error) {
	if o.Layout {
		return o, nil // the name of a directory
	}
	ref, err := NormalRef(o.Ref)
	if err != nil || ref == o.Ref {
		return o, err
	}
	c := *o
	c.Ref = ref
	return &c, nil
}

func normalHTTP(o *HTTP) (Op, error) {
	u, login, err := NormalURL(o.URL)
	if err != nil || u == o.URL {
		return o, err
	}
	c := *o
	c.URL = u
	if login != nil {
		c.Login = login
	}
	return &c, nil
}

func normalGit(o *Git) (Op, error) {
	remote, login, err := NormalRemote(o.Remote)
	if err != nil {
		return o, err
	}
	sub, bundle := strings.TrimPrefix(path.Join("/", o.Subdir), "/"), o.BundleFrom
	if scheme, ref, ok := strings.Cut(bundle, "://"); ok && scheme == "docker-image+blob" {
		if ref, err = NormalRef(ref); err != nil {
			return o, err
		}
		bundle = scheme + "://" + ref
	}
	if remote == o.Remote && sub == o.Subdir && bundle == o.BundleFrom {
		return o, nil
	}
	c := *o
	c.Remote, c.Subdir, c.BundleFrom = remote, sub, bundle
	if login != nil {
		c.Login = login
	}
	return &c, nil
}

// hubNames are the names by which Docker Hub's registry can be reached.
var hubNames = map[string]bool{"docker.io": true, "index.docker.io": true, "registry-1.docker.io": true, "registry.hub.docker.com": true}

// NormalRegistry returns the one name of a registry that has several.
func NormalRegistry(host string) string {
	if hubNames[strings.TrimSuffix(host, ":443")] {
		return "docker.io"
	}
	return host
}

// NormalRef returns an image reference in full: HOST/REPOSITORY:TAG, HOST/REPOSITORY@DIGEST or with both. The rules are
// those of Docker.
func NormalRef(s string) (string, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		e := diag.Errorf(diag.Invalid, "invalid image reference %q: %w", s, err)
		if low := strings.ToLower(s); low != s {
			return "", e.WithHint("repository names are in lower case: %s", low)
		}
		return "", e
	}
	host, err := NormalHost(reference.Domain(named), "")
	if err != nil {
		return "", diag.Errorf(diag.Invalid, "invalid image reference %q: %w", s, err)
	}
	host = NormalRegistry(host)
	if host != reference.Domain(named) {
		rest := strings.TrimPrefix(named.String(), reference.Domain(named))
		if named, err = reference.ParseNormalizedNamed(host + rest); err != nil { // docker.io gets its library/ here
			return "", diag.Errorf(diag.Invalid, "invalid image reference %q: %w", s, err)
		}
	}
	return reference.TagNameOnly(named).String(), nil
}

var defaultPorts = map[string]string{"http": "80", "https": "443", "ssh": "22", "git": "9418"}

// numeric matches a last label that some resolvers read as a part of an IPv4 address: 127.1, 0x7f000001, 0177.0.0.1.
var numeric = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)

// NormalHost returns "host[:port]" in lower case: international names in ASCII, no final dot, IP addresses and ports in their
// shortest form, and no port that is the scheme's own.
func NormalHost(hostport, scheme string) (string, error) {
	u := url.URL{Host: hostport}
	host, port := u.Hostname(), u.Port()
	if host == "" || port == "" && strings.HasSuffix(hostport, ":") && !strings.HasSuffix(hostport, "]:") && strings.Count(hostport, ":") > 1 {
		return "", diag.Errorf(diag.Invalid, "%q is not a host", hostport)
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 32)
		if err != nil || n > 65535 {
			return "", diag.Errorf(diag.Invalid, "%q is not a port", port)
		}
		port = strconv.FormatUint(n, 10)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if host = ip.Unmap().String(); strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
	} else if host, err = normalName(host); err != nil {
		return "", err
	}
	if port == "" || port == defaultPorts[scheme] {
		return host, nil
	}
	return host + ":" + port, nil
}

// normalName is NormalHost for a name.
func normalName(name string) (string, error) {
	ascii := strings.ToLower(name)
	if strings.IndexFunc(name, func(r rune) bool { return r >= 0x80 }) >= 0 {
		var err error
		if ascii, err = idna.Lookup.ToASCII(name); err != nil {
			return "", diag.Errorf(diag.Invalid, "%q is not a host name: %w", name, err)
		}
	}
	ascii = strings.TrimSuffix(ascii, ".")
	last := ascii[strings.LastIndexByte(ascii, '.')+1:]
	switch {
	case ascii == "", strings.HasPrefix(ascii, "-"), strings.HasPrefix(ascii, "."), strings.Contains(ascii+".", ".."),
		strings.ContainsAny(ascii, " \t[]:@/\\%"):
		return "", diag.Errorf(diag.Invalid, "%q is not a host name", name)
	case numeric.MatchString(last):
		if ip, err := netip.ParseAddr(ascii); err == nil {
			return ip.String(), nil
		}
		return "", diag.Errorf(diag.Invalid, "%q is not an IP address", name).WithHint("write all four numbers, in decimal")
	}
	return ascii, nil
}

// NormalURL returns an http or https URL in normal form, and the login that it had.
func NormalURL(s string) (string, *url.Userinfo, error) {
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", nil, diag.Errorf(diag.Invalid, "%q is no http or https URL", diag.Redact(s))
	}
	if u.Host, err = NormalHost(u.Host, u.Scheme); err != nil {
		return "", nil, err
	}
	login := u.User
	p := removeDots(normalEscapes(u.EscapedPath()))
	u.User, u.Fragment, u.RawFragment, u.ForceQuery, u.Path, u.RawPath = nil, "", "", false, "", ""
	query := u.RawQuery
	u.RawQuery = ""
	out := u.String() + p
	if query != "" {
		out += "?" + query // as it is: signatures are made over its bytes
	}
	return out, login, nil
}

// normalEscapes decodes the escapes of letters, digits and "-._~", and writes the others in upper case (RFC 3986, 6.2.2).
func normalEscapes(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] != '%' || i+2 >= len(p) {
			b.WriteByte(p[i])
			continue
		}
		n, err := strconv.ParseUint(p[i+1:i+3], 16, 8)
		c := byte(n)
		if err == nil && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0) {
			b.WriteByte(c)
		} else {
			b.WriteString(strings.ToUpper(p[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

// removeDots resolves "." and ".." in an absolute path; empty segments stay (RFC 3986, 5.2.4).
func removeDots(p string) string {
	var out []string
	segments := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

// scpRemote is the form of ssh remotes that is no URL: [user@]host:path.
var scpRemote = regexp.MustCompile(`^(?:([A-Za-z0-9._-]+)@)?([A-Za-z0-9][A-Za-z0-9.-]*):([^:].*)$`)

// NormalRemote returns the address of a git repository in normal form, and the login that an http URL had. There are http,
// https, git and ssh URLs, and user@host:path; a repository of this machine has no address here, so that no client of an
// engine can name one.
func NormalRemote(s string) (string, *url.Userinfo, error) {
	if s == "" || s[0] == '-' || strings.ContainsAny(s, "\x00\n\r") {
		return "", nil, diag.Errorf(diag.Invalid, "%q is no git remote", diag.Redact(s))
	}
	if !strings.Contains(s, "://") {
		return normalSCP(s)
	}
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" {
		return "", nil, diag.Errorf(diag.Invalid, "the git remote is no URL").WithHint("use a URL such as https://host/repository.git")
	}
	var login *url.Userinfo
	switch u.Scheme {
	case "http", "https":
		login, u.User = u.User, nil
	case "git":
		u.User = nil
	case "ssh":
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		if strings.HasPrefix(u.User.Username(), "-") {
			return "", nil, diag.Errorf(diag.Invalid, "%q is no user of an ssh server", u.User.Username())
		}
	case "file":
		return "", nil, diag.Errorf(diag.Denied, "%s: git remotes on this machine are not allowed", diag.Redact(s))
	default:
		return "", nil, diag.Errorf(diag.Invalid, "git remotes of the protocol %q are not allowed", u.Scheme).WithHint("http, https, git and ssh are")
	}
	if u.Hostname() == "" || u.Hostname()[0] == '-' {
		return "", nil, diag.Errorf(diag.Invalid, "%s names no host", diag.Redact(s))
	}
	if u.Host, err = NormalHost(u.Host, u.Scheme); err != nil {
		return "", nil, err
	}
	return (&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host, Path: path.Join("/", u.Path)}).String(), login, nil
}

func normalSCP(s string) (string, *url.Userinfo, error) {
	m := scpRemote.FindStringSubmatch(s)
	if m == nil || strings.Contains(s, "::") {
		return "", nil, diag.Errorf(diag.Invalid, "%q is no git remote", s).WithHint("use a URL such as https://host/repository.git or git@host:repository.git")
	}
	host, err := NormalHost(m[2], "ssh")
	if err != nil {
		return "", nil, err
	}
	if m[1] != "" {
		host = m[1] + "@" + host
	}
	p := path.Join("/", m[3])
	if !strings.HasPrefix(m[3], "/") {
		p = p[1:] // below the user's home
	}
	if p == "" || p == "/" {
		return "", nil, diag.Errorf(diag.Invalid, "%q names no repository of the host", s)
	}
	return host + ":" + p, nil, nil
}
