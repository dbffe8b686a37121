package policy

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
)

// candidate is a source that is looked at, in normal form, with the login that rules and clients do not see.
type candidate struct {
	*pb.SourceOp
	login *url.Userinfo
}

// normalize puts the identifier into normal form after a rule or a client has changed it. One that cannot be read stays: it is refused
// in the end.
func (c *candidate) normalize() {
	op, err := llb.DecodeSource(c.SourceOp)
	if err == nil {
		op, err = graph.Normalize(op)
	}
	if err != nil {
		return
	}
	switch o := op.(type) {
	case *graph.HTTP:
		c.login = o.Login
	case *graph.Git:
		c.login = o.Login
	}
	src, err := llb.EncodeSource(plain(op))
	if err != nil {
		return
	}
	c.Identifier = src.Identifier
	if full := src.Attrs[pb.AttrFullRemoteURL]; c.Attrs[pb.AttrFullRemoteURL] != "" {
		c.Attrs[pb.AttrFullRemoteURL] = full
	}
}

// names are the identifiers that mean the source: first its own, then those that may mean it too. A rule that denies or converts
// looks at all of them, a rule that allows only at the first.
func names(id string) []string {
	out := []string{id}
	scheme, rest, _ := strings.Cut(id, "://")
	switch scheme {
	case "docker-image", "docker-image+blob":
		for _, r := range imageNames(rest) {
			out = append(out, scheme+"://"+r)
		}
	case "git":
		for _, r := range gitNames(rest) {
			out = append(out, scheme+"://"+r)
		}
	}
	return out
}

// imageNames are other names of an image: a tag beside a digest is for people only, and a registry's usual port may be left out.
func imageNames(ref string) (out []string) {
	hosts := []string{ref}
	host, repo, ok := strings.Cut(ref, "/")
	for _, port := range []string{":443", ":80"} {
		if short, has := strings.CutSuffix(host, port); ok && has {
			hosts = append(hosts, short+"/"+repo)
			out = append(out, short+"/"+repo)
		}
	}
	for _, r := range hosts {
		name, digest, pinned := strings.Cut(r, "@")
		if tag := strings.LastIndexByte(name, ':'); pinned && tag > strings.LastIndexByte(name, '/') {
			out = append(out, name, name[:tag]+"@"+digest)
		}
	}
	return out
}

// gitNames are other names of a repository and its refs: servers take a repository's name with and without ".git", and git
// takes "main", "heads/main" and "refs/heads/main" for one branch.
func gitNames(id string) (out []string) {
	repo, fragment, hasRef := strings.Cut(id, "#")
	repos := []string{repo, repo + ".git"}
	if short, ok := strings.CutSuffix(repo, ".git"); ok {
		repos[1] = short
	}
	ref, sub, hasSub := strings.Cut(fragment, ":")
	refs := []string{ref}
	for _, prefix := range []string{"refs/heads/", "refs/tags/", "heads/", "tags/", "refs/"} {
		if short, ok := strings.CutPrefix(ref, prefix); ok {
			refs = append(refs, short)
		}
	}
	for _, r := range repos {
		for _, f := range refs {
			if hasSub {
				f += ":" + sub
			}
			if hasRef {
				f = "#" + f
			}
			if name := r + f; name != id {
				out = append(out, name)
			}
		}
	}
	return out
}

// address is the scheme and the host of a selector, and the rest.
var address = regexp.MustCompile(`^(docker-image|docker-image\+blob|git|http|https)://([^/#?]*)(.*)$`)

// selector returns the identifier that a selector is compared with: in the form that the identifiers of sources have, as far as it is
// known without what its wildcards stand for.
func selector(s *spb.Selector) string {
	id := s.Identifier
	if s.MatchType == spb.MatchType_REGEX {
		return id
	}
	m := address.FindStringSubmatch(id)
	if m == nil {
		return id
	}
	wild := s.MatchType == spb.MatchType_WILDCARD
	if !wild || !strings.Contains(id, "*") {
		c := candidate{SourceOp: &pb.SourceOp{Identifier: id}}
		if m[1] == "docker-image" {
			if ref, err := graph.NormalRef(m[2] + m[3]); err == nil {
				return m[1] + "://" + ref
			}
		}
		c.normalize()
		return c.Identifier
	}
	host := m[2][strings.LastIndexByte(m[2], '@')+1:]
	if strings.HasPrefix(m[1], "docker-image") && !strings.HasPrefix(m[3], "/") {
		return id // what stands there need not be a host
	}
	if strings.Contains(host, "*") {
		return m[1] + "://" + strings.ToLower(host) + m[3]
	}
	h, err := graph.NormalHost(host, m[1])
	if err != nil {
		return id
	}
	if strings.HasPrefix(m[1], "docker-image") {
		h = graph.NormalRegistry(h)
	}
	return m[1] + "://" + h + m[3]
}
