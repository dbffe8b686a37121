package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// target returns the address that a request is for. It is the only one that the policy sees, that is asked and that is recorded.
// Authority is the host and port of the tunnel that the request came through; "" = none.
func target(r *http.Request, authority string) (*url.URL, error) {
	scheme, host := "http", r.Host
	if authority != "" {
		scheme = "https"
	}
	if r.URL.IsAbs() {
		if s := r.URL.Scheme; s != "http" && s != "https" {
			return nil, fmt.Errorf("the proxy has no %q addresses", s)
		}
		if authority != "" && r.URL.Scheme != "https" {
			return nil, fmt.Errorf("a tunnel to %s got a request for %s://%s", authority, r.URL.Scheme, r.URL.Host)
		}
		scheme, host = r.URL.Scheme, r.URL.Host
	}
	if authority != "" && host == "" { // HTTP/1.0
		host = authority
	}
	host, err := canonicalHost(scheme, host)
	if err != nil {
		return nil, err
	}
	if authority != "" && host != authority {
		return nil, fmt.Errorf("a tunnel to %s got a request for %s", authority, host)
	}
	if r.URL.Opaque != "" || r.URL.Path != "" && r.URL.Path[0] != '/' {
		return nil, errors.New("the address of the request has no path")
	}
	return &url.URL{
		Scheme: scheme, Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery,
	}, nil
}

// canonicalHost returns the one spelling of a host with a port: lower case, addresses as netip writes them, and no port if it is
// the one of the scheme. Spellings that only some programs take for an address or for a name are errors.
func canonicalHost(scheme, host string) (string, error) {
	bad := fmt.Errorf("invalid host %q", host)
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name, port = host[:i], host[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", bad
		}
		port = strconv.FormatUint(n, 10)
	}
	if v6, ok := strings.CutPrefix(name, "["); ok {
		ip, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		if err != nil || ip.Zone() != "" || !ip.Is6() || !strings.HasSuffix(v6, "]") {
			return "", bad
		}
		if name = ip.Unmap().String(); !ip.Is4In6() {
			name = "[" + name + "]"
		}
	} else if name = strings.TrimSuffix(strings.ToLower(name), "."); !isName(name) {
		return "", bad
	}
	if port == "" || scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		return name, nil
	}
	return name + ":" + port, nil
}

// isName reports whether a host is a name or an IPv4 address in its usual form. A host whose last label is a number is an address
// for inet_aton(3), which has many forms.
func isName(host string) bool {
	if len(host) > 253 {
		return false
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if l == "" || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return true
}

// hostOnly is the host of a canonical host and port, without brackets.
func hostOnly(canonical string) string { return (&url.URL{Host: canonical}).Hostname() }
