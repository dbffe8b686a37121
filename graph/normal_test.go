package graph

import (
	"net/url"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

const sum = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// Every spelling of an address is one address, or none.
func TestAttackAliasesOfReferences(t *testing.T) {
	for s, want := range map[string]string{
		"alpine":                                   "docker.io/library/alpine:latest",
		"docker.io/alpine":                         "docker.io/library/alpine:latest",
		"index.docker.io/alpine:3":                 "docker.io/library/alpine:3",
		"index.docker.io/library/alpine:3":         "docker.io/library/alpine:3",
		"registry-1.docker.io/library/alpine:3":    "docker.io/library/alpine:3",
		"registry.hub.docker.com/library/alpine:3": "docker.io/library/alpine:3",
		"registry-1.docker.io:443/library/alpine":  "docker.io/library/alpine:latest",
		"DOCKER.IO/library/alpine:3":               "docker.io/library/alpine:3",
		"DOCKER.io/alpine:3":                       "docker.io/library/alpine:3",
		"Index.Docker.Io/alpine" + sum:             "docker.io/library/alpine" + sum,
		"GHCR.io/a/b":                              "ghcr.io/a/b:latest",
		"ghcr.io/a/b:x" + sum:                      "ghcr.io/a/b:x" + sum,
		"localhost:05103/a":                        "localhost:5103/a:latest",
		"127.0.0.1:0005103/a:1":                    "127.0.0.1:5103/a:1",
		"[0:0:0:0:0:0:0:1]:05000/a:1":              "[::1]:5000/a:1",
		"Host:5000/a/b":                            "host:5000/a/b:latest",
	} {
		op, err := Normalize(&Image{Ref: s})
		if err != nil || op.(*Image).Ref != want {
			t.Errorf("%s: %+v %v, want %s", s, op, err, want)
		}
		if again, err := Normalize(op); err != nil || again != op {
			t.Errorf("%s: the normal form is another one the second time: %+v %v", s, again, err)
		}
		if v := New(&Image{Ref: s}, nil); v.ID != New(&Image{Ref: want}, nil).ID || v.Op.(*Image).Ref != want {
			t.Errorf("%s: another vertex than %s", s, want)
		}
	}
	for _, s := range []string{"ghcr.io./a/b", "user@ghcr.io/a", "user:pw@ghcr.io/a:1", "https://ghcr.io/a", "ghcr.io:99999/a", "127.1:5000/a", "0x7f.0.0.1:80/a", "ghcr.io/%61", "ghcr。io/a", "g\u0127cr.io/a", "", "a b", "ghcr.io/../a", "[::FFFF:127.0.0.1]:5000/a:1"} {
		if op, err := Normalize(&Image{Ref: s}); diag.KindOf(err) != diag.Invalid || err == nil {
			t.Errorf("%s: %+v %v", s, op, err)
		}
	}
}

func TestAttackAliasesOfURLs(t *testing.T) {
	for s, want := range map[string]string{
		"HTTPS://Example.COM/a":                "https://example.com/a",
		"https://example.com:443/a":            "https://example.com/a",
		"https://example.com:0443/a":           "https://example.com/a",
		"https://example.com:/a":               "https://example.com/a",
		"http://example.com:080/a":             "http://example.com/a",
		"http://example.com:443/a":             "http://example.com:443/a",
		"https://example.com./a":               "https://example.com/a",
		"https://user:pw@example.com/a":        "https://example.com/a",
		"https://@example.com/a":               "https://example.com/a",
		"https://example.com@evil.example/a":   "https://evil.example/a",
		"https://example.com/x/../a":           "https://example.com/a",
		"https://example.com/../../a":          "https://example.com/a",
		"https://example.com/./a":              "https://example.com/a",
		"https://example.com/x/%2e%2e/a":       "https://example.com/a",
		"https://example.com/x/.%2E/a":         "https://example.com/a",
		"https://example.com/%61":              "https://example.com/a",
		"https://example.com/%c3%a9":           "https://example.com/%C3%A9",
		"https://example.com/é":                "https://example.com/%C3%A9",
		"https://example.com/a%2fb":            "https://example.com/a%2Fb",
		"https://example.com/a#b":              "https://example.com/a",
		"https://example.com/a?":               "https://example.com/a",
		"https://example.com/a?x=%2f..%61":     "https://example.com/a?x=%2f..%61",
		"https://example.com":                  "https://example.com/",
		"https://example.com/a/..":             "https://example.com/",
		"https://ｅxample。com/a":                "https://example.com/a",
		"https://ex%C3%A4mple.com/a":           "https://xn--exmple-cua.com/a",
		"https://EXÄMPLE.com/a":                "https://xn--exmple-cua.com/a",
		"https://XN--EXMPLE-CUA.com/a":         "https://xn--exmple-cua.com/a",
		"http://[0:0::1]:80/a":                 "http://[::1]/a",
		"http://[::ffff:169.254.169.254]/a":    "http://169.254.169.254/a",
		"http://[::ffff:a9fe:a9fe]:080/latest": "http://169.254.169.254/latest",
	} {
		op, err := Normalize(&HTTP{URL: s})
		if err != nil || op.(*HTTP).URL != want {
			t.Errorf("%s: %+v %v, want %s", s, op, err, want)
			continue
		}
		if again, err := Normalize(op); err != nil || again != op {
			t.Errorf("%s: the normal form is another one the second time: %+v %v", s, again, err)
		}
	}
	for _, s := range []string{
		"https:/a", "https:example.com/a", "ftp://example.com/a", "https://exa mple.com/a", "http://127.1/a", "http://2852039166/a", "http://0xa9fea9fe/a",
		"http://0251.0376.0251.0376/a", "http://169.254.169.254.1/", "https://example.com:99999/", "https://ex%61mple.com/a", `https://example.com\@evil/`, "https://-x/", "https://", "https://%00/a",
	} {
		if op, err := Normalize(&HTTP{URL: s}); diag.KindOf(err) != diag.Invalid || err == nil {
			t.Errorf("%s: %+v %v", s, op, err)
		}
	}
	v := New(&HTTP{URL: "https://user:CANARY@example.com/a"}, nil)
	if o := v.Op.(*HTTP); o.Login.String() != "user:CANARY" || strings.Contains(string(Canonical(o)), "CANARY") {
		t.Errorf("%+v", o)
	}
}

func TestAttackAliasesOfRemotes(t *testing.T) {
	for s, want := range map[string]string{
		"https://GitHub.com:443/a/b.git":     "https://github.com/a/b.git",
		"https://token:x@github.com/a/b.git": "https://github.com/a/b.git",
		"https://github.com./a//b.git":       "https://github.com/a/b.git",
		"https://github.com/./a/c/../b.git/": "https://github.com/a/b.git",
		"https://github.com/%61/b.git?x=y#z": "https://github.com/a/b.git",
		"ssh://git:pw@github.com:22/a/b.git": "ssh://git@github.com/a/b.git",
		"ssh://git@github.com:0022/a/b.git":  "ssh://git@github.com/a/b.git",
		"git://someone@github.com:9418/a/b":  "git://github.com/a/b",
		"git@GITHUB.com:a//b.git":            "git@github.com:a/b.git",
		"git@github.com.:/a/./b.git":         "git@github.com:/a/b.git",
		"git@github.com:../../a/b.git":       "git@github.com:a/b.git",
		"HTTP://[0:0::1]:080/a.git":          "http://[::1]/a.git",
		"https://github.com:8443/a/b.git":    "https://github.com:8443/a/b.git",
		"ssh://git@github.com:02222/a/b.git": "ssh://git@github.com:2222/a/b.git",
		"https://ｇithub.com/a/b.git":         "https://github.com/a/b.git",
	} {
		op, err := Normalize(&Git{Remote: s})
		if err != nil || op.(*Git).Remote != want {
			t.Errorf("%s: %+v %v, want %s", s, op, err, want)
			continue
		}
		if again, err := Normalize(op); err != nil || again != op {
			t.Errorf("%s: the normal form is another one the second time: %+v %v", s, again, err)
		}
	}
	for _, s := range []string{
		"", "-x", "--upload-pack=x", "/etc", "file:///etc", "FILE:///etc", "./x", "../x", "ext::sh -c x", "ssh://-oProxyCommand=x/y", "ssh://-oProxyCommand=x@host/y",
		"-oProxyCommand=x:y", "https://127.1/a", "https:///a", "git@host:", "fd::1", "a\nb",
	} {
		if op, err := Normalize(&Git{Remote: s}); err == nil || diag.KindOf(err) != diag.Invalid && diag.KindOf(err) != diag.Denied {
			t.Errorf("%s: %+v %v", s, op, err)
		}
	}
}

// A normal form is stable, and keeps the server that the address names.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"alpine", "HOST:05/a@sha256:1", "https://u:p@[::1]:443/a/../%2e?x#y", "git@host:a//b", "ssh://git@host:22/a", "http://ｅ.com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, op := range []Op{&Image{Ref: s}, &HTTP{URL: s}, &Git{Remote: s}, &Blob{Ref: s}} {
			n, err := Normalize(op)
			if err != nil {
				continue
			}
			again, err := Normalize(n)
			if err != nil || string(Canonical(again)) != string(Canonical(n)) {
				t.Fatalf("%q: %s, then %s %v", s, Canonical(n), Canonical(again), err)
			}
			if h, ok := n.(*HTTP); ok {
				if u, err := url.Parse(h.URL); err != nil || u.User != nil || strings.ToLower(u.Host) != u.Host {
					t.Fatalf("%q: %s %v", s, h.URL, err)
				}
			}
		}
	})
}
