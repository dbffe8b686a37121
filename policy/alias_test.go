package policy

import (
	"context"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

const pin = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// A source that is denied is denied by every name that it has.
func TestAttackPolicyPassedByAlias(t *testing.T) {
	for deny, ops := range map[string][]graph.Op{
		"docker-image://docker.io/library/alpine:*": {
			&graph.Image{Ref: "alpine"}, &graph.Image{Ref: "index.docker.io/library/alpine:3"}, &graph.Image{Ref: "registry-1.docker.io/library/alpine:3"},
			&graph.Image{Ref: "DOCKER.IO/library/alpine:3"}, &graph.Image{Ref: "docker.io/alpine"}, &graph.Image{Ref: "docker.io:443/library/alpine:3"},
			&graph.Image{Ref: "registry-1.docker.io:0443/library/alpine:3" + pin},
		},
		"docker-image://docker.io/library/alpine:latest":  {&graph.Image{Ref: "alpine"}, &graph.Image{Ref: "alpine:latest"}, &graph.Image{Ref: "alpine:latest" + pin}},
		"docker-image://docker.io/library/alpine":         {&graph.Image{Ref: "alpine"}, &graph.Image{Ref: "alpine:latest"}},
		"docker-image://INDEX.docker.io/library/alpine:*": {&graph.Image{Ref: "alpine"}},
		"docker-image://docker.io/library/alpine" + pin:   {&graph.Image{Ref: "alpine" + pin}, &graph.Image{Ref: "alpine:any" + pin}},
		"docker-image://localhost:5103/*":                 {&graph.Image{Ref: "localhost:05103/a"}, &graph.Image{Ref: "LocalHost:5103/a"}},
		"docker-image://ghcr.io/*":                        {&graph.Image{Ref: "ghcr.io:443/a"}, &graph.Image{Ref: "GHCR.io:0443/a"}},
		"docker-image://GHCR.io/*":                        {&graph.Image{Ref: "ghcr.io/a"}},
		"docker-image+blob://ghcr.io/*":                   {&graph.Blob{Ref: "GHCR.IO/a" + pin}, &graph.Git{Remote: "https://h/x.git", Checksum: "1", BundleFrom: "docker-image+blob://GHCR.io/b" + pin}},
		"https://example.com/secret/*": {
			&graph.HTTP{URL: "https://user:pw@example.com/secret/a"}, &graph.HTTP{URL: "https://EXAMPLE.com:443/secret/a"}, &graph.HTTP{URL: "https://example.com./x/../secret/a"},
			&graph.HTTP{URL: "https://example.com:0443/%73ecret/a"}, &graph.HTTP{URL: "HTTPS://example.com/./secret/a#b"}, &graph.HTTP{URL: "https://ｅxample.com/secret/a"},
		},
		"https://Example.com:443/secret/a": {&graph.HTTP{URL: "https://example.com/secret/a"}, &graph.HTTP{URL: "https://example.com/secret/a?"}, &graph.HTTP{URL: "https://example.com/secret/a#x"}},
		"http://169.254.169.254/*":         {&graph.HTTP{URL: "http://[::ffff:a9fe:a9fe]/x"}, &graph.HTTP{URL: "http://169.254.169.254:080/x"}},
		"git://github.com/a/b.git*": {
			&graph.Git{Remote: "https://github.com/a/b.git"}, &graph.Git{Remote: "git@github.com:a/b.git", Ref: "main"}, &graph.Git{Remote: "ssh://git@github.com:22/a/b.git"},
			&graph.Git{Remote: "https://x:y@GitHub.com:443/a//./b.git/"}, &graph.Git{Remote: "https://github.com/a/b"}, &graph.Git{Remote: "git@github.com:/a/c/../b", Ref: "v1", Subdir: "d"},
		},
		"git://github.com/a/b":            {&graph.Git{Remote: "https://github.com/a/b.git"}, &graph.Git{Remote: "https://github.com./a/b"}},
		"git://github.com/a/b.git#main":   {&graph.Git{Remote: "https://github.com/a/b.git", Ref: "refs/heads/main"}, &graph.Git{Remote: "https://github.com/a/b", Ref: "heads/main"}},
		"git://github.com/a/b.git#main:d": {&graph.Git{Remote: "https://github.com/a/b", Ref: "main", Subdir: "/./d/"}},
		"git://GITHUB.com/*":              {&graph.Git{Remote: "https://github.com/a/b"}},
	} {
		for _, kind := range []string{"WILDCARD", "EXACT"} {
			if kind == "EXACT" && strings.Contains(deny, "*") {
				continue
			}
			p, err := New(Options{}, rules(t, `{"action": "DENY", "selector": {"identifier": "`+deny+`", "match_type": "`+kind+`"}}`))
			if err != nil {
				t.Fatal(err)
			}
			for _, op := range ops {
				if got, err := p.Source(t.Context(), op, linux); diag.KindOf(err) != diag.Denied {
					t.Errorf("%s %s passes as %+v: %v", kind, deny, got, err)
				}
				// What there is as a vertex is no other source.
				if got, err := p.Source(t.Context(), graph.New(op, nil).Op, linux); diag.KindOf(err) != diag.Denied {
					t.Errorf("%s %s passes as the vertex %+v: %v", kind, deny, got, err)
				}
			}
		}
	}
}

// A rule that allows looks at the one name only: another repository must not pass as an allowed one.
func TestAttackPolicyAllowedByAlias(t *testing.T) {
	p, err := New(Options{}, rules(t, denyRule("*")+","+allowRule("git://github.com/a/b.git*")+","+allowRule("docker-image://docker.io/library/alpine:3")+","+allowRule("https://example.com/*")))
	if err != nil {
		t.Fatal(err)
	}
	for _, ok := range []graph.Op{
		&graph.Git{Remote: "git@GitHub.com:a/b.git"}, &graph.Image{Ref: "index.docker.io/alpine:3"}, &graph.HTTP{URL: "https://u:p@EXAMPLE.com:443/a/../b"},
	} {
		if _, err := p.Source(t.Context(), ok, linux); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	for _, denied := range []graph.Op{
		&graph.Git{Remote: "https://github.com/a/b"}, &graph.Image{Ref: "alpine:3" + pin}, &graph.Image{Ref: "docker.io.evil.example/library/alpine:3"},
		&graph.HTTP{URL: "https://example.com@evil.example/"}, &graph.HTTP{URL: "https://example.com:8443/a"},
	} {
		if _, err := p.Source(t.Context(), denied, linux); diag.KindOf(err) != diag.Denied {
			t.Errorf("%+v: %v", denied, err)
		}
	}
	// What has no normal form passes no policy.
	for _, bad := range []graph.Op{&graph.HTTP{URL: "http://0x7f.1/"}, &graph.Git{Remote: "file:///etc"}, &graph.Image{Ref: "ghcr.io./a"}} {
		if _, err := p.Source(t.Context(), bad, linux); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// What is used is what was looked at: the source in normal form, and a login that goes to its own server only.
func TestAttackPolicyAndFetcherDisagree(t *testing.T) {
	var seen []string
	p, err := New(Options{Check: func(_ context.Context, src *pb.SourceOp, _ graph.Platform, _ *int) (*pb.SourceOp, error) {
		seen = append(seen, src.Identifier+" "+src.Attrs[pb.AttrFullRemoteURL])
		if strings.HasPrefix(src.Identifier, "docker-image://quay.io/") {
			return &pb.SourceOp{Identifier: "docker-image://INDEX.docker.io/library/denied:1"}, nil
		}
		return nil, nil
	}}, rules(t, denyRule("docker-image://docker.io/library/denied:*")+`,
		{"action": "CONVERT", "selector": {"identifier": "https://moved.example/*"}, "updates": {"identifier": "https://MIRROR.example:443/$1"}},
		{"action": "CONVERT", "selector": {"identifier": "https://same.example/a"}, "updates": {"identifier": "https://same.example/b"}},
		{"action": "CONVERT", "selector": {"identifier": "https://own.example/a"}, "updates": {"identifier": "https://rule:pw@mirror.example/own"}},
		{"action": "CONVERT", "selector": {"identifier": "docker-image://docker.io/library/alpine:*"}, "updates": {"identifier": "docker-image://Registry-1.docker.io/library/denied:1"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ url, want, login string }{
		{"https://user:CANARY@Example.com:443/x/../a", "https://example.com/a", "user:CANARY"},
		{"https://user:CANARY@moved.example/a", "https://mirror.example/a", ""},
		{"https://user:CANARY@same.example/a", "https://same.example/b", "user:CANARY"},
		{"https://user:CANARY@own.example/a", "https://mirror.example/own", "rule:pw"},
	} {
		op, err := p.Source(t.Context(), &graph.HTTP{URL: tc.url}, linux)
		if err != nil {
			t.Fatal(err)
		}
		if h := op.(*graph.HTTP); h.URL != tc.want || h.Login.String() != tc.login {
			t.Errorf("%s: %s with %q", tc.url, h.URL, h.Login)
		}
	}
	op, err := p.Source(t.Context(), &graph.Git{Remote: "https://user:CANARY@Example.com/a//b.git", Ref: "main"}, linux)
	if g, ok := op.(*graph.Git); err != nil || !ok || g.Remote != "https://example.com/a/b.git" || g.Login.String() != "user:CANARY" {
		t.Errorf("%+v %v", op, err)
	}
	for _, s := range seen {
		if strings.Contains(s, "CANARY") || strings.Contains(s, ":pw@") {
			t.Errorf("the check was asked about %s", s)
		}
	}
	for _, ref := range []string{"alpine:3", "quay.io/a/b:1"} {
		if op, err := p.Source(t.Context(), &graph.Image{Ref: ref}, linux); diag.KindOf(err) != diag.Denied {
			t.Errorf("%s becomes %+v: %v", ref, op, err)
		}
	}
}
