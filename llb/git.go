package llb

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// A git source is named by git://HOST/PATH[#REF[:SUBDIR]], whatever the transport; the attribute git.fullurl says how to get
// there. Without it the transport is https, unless the name itself begins with one.

var (
	schemed = regexp.MustCompile(`^[a-zA-Z0-9]+://`)
	scp     = regexp.MustCompile(`^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^?#]*)(?:\?([^#]*))?(?:#(.*))?$`)
	commit  = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

// remote is the address of a repository.
type remote struct {
	host, path  string
	ref, subdir string
	render      func(path string) string // the address with another path
}

func parseRemote(s string) (*remote, error) {
	if !transport(s) {
		s = "https://" + s
	}
	r := &remote{}
	var fragment string
	if m := scp.FindStringSubmatch(s); m != nil {
		r.host, r.path, fragment = m[2], m[3], m[5]
		rooted := strings.HasPrefix(r.path, "/")
		r.render = func(p string) string {
			if !rooted {
				p = strings.TrimPrefix(p, "/")
			}
			return m[1] + "@" + m[2] + ":" + p
		}
	} else {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			return nil, invalidf("the git repository %q is not a URL", redact(s))
		}
		r.host, r.path, fragment = u.Host, u.Path, u.Fragment
		r.render = func(p string) string {
			return (&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host, Path: p}).String()
		}
	}
	if fragment != "" {
		r.ref, r.subdir, _ = strings.Cut(fragment, ":")
		r.subdir = strings.TrimPrefix(path.Join("/", r.subdir), "/")
	}
	return r, nil
}

// transport reports whether an address says how to get there.
func transport(s string) bool {
	if p := schemed.FindString(s); p != "" {
		switch strings.ToLower(p) {
		case "http://", "https://", "ssh://", "git://":
			return true
		}
		return false
	}
	return scp.MatchString(s)
}

// redact hides the credentials of an address.
func redact(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	host, _, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		return scheme + "://xxxxx" + rest[at:]
	}
	return s
}

func repository(p string) string { return strings.TrimSuffix(path.Join("/", p), ".git") }

func decodeGit(name string, a *attrs) (graph.Op, error) {
	r, err := parseRemote(name)
	if err != nil {
		return nil, err
	}
	out := &graph.Git{
		Remote: r.render(path.Join("/", r.path)), Ref: r.ref, Subdir: r.subdir, Checksum: a.m[pb.AttrGitChecksum], KeepDir: a.flag(pb.AttrKeepGitDir),
		SkipSubmodules: a.flag(pb.AttrGitSkipSubmodules), FetchByCommit: a.flag(pb.AttrGitFetchByCommit),
		MTimeCommit: a.choice(pb.AttrGitMTime, "checkout", "commit") == "commit", Bundle: a.flag(pb.AttrGitCheckoutBundle),
		BundleFrom: a.m[pb.AttrGitBundle], Signature: gitSignature(a),
		AuthToken: a.m[pb.AttrAuthTokenSecret], AuthHeader: a.m[pb.AttrAuthHeaderSecret], SSH: a.m[pb.AttrMountSSHSock],
		KnownHosts: a.m[pb.AttrKnownSSHHosts], Advice: a.flag(pb.AttrGitAdvice), Store: a.m[pb.AttrOCILayoutStoreID], Session: a.m[pb.AttrOCILayoutSessionID],
	}
	if full := a.m[pb.AttrFullRemoteURL]; full != "" {
		f, err := parseRemote(full)
		if err != nil {
			return nil, err
		}
		if !strings.EqualFold(f.host, r.host) || repository(f.path) != repository(r.path) {
			return nil, invalidf("the git source %q is said to be at %q, which is another repository", name, redact(full))
		}
		out.Remote = f.render(path.Join("/", r.path))
	}
	return out, checkGit(out)
}

func gitSignature(a *attrs) *graph.GitVerify {
	s := &graph.GitVerify{
		PubKey: a.m[pb.AttrGitSignatureVerifyPubKey], RejectExpired: a.flag(pb.AttrGitSignatureVerifyRejectExpired),
		RequireSigned: a.flag(pb.AttrGitSignatureVerifyRequireSignedTag), IgnoreSignedTag: a.flag(pb.AttrGitSignatureVerifyIgnoreSignedTag),
	}
	if *s == (graph.GitVerify{}) {
		return nil
	}
	return s
}

func checkGit(g *graph.Git) error {
	if strings.HasPrefix(g.Ref, "-") || strings.IndexFunc(g.Ref+g.Checksum, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) >= 0 {
		return invalidf("%q is not a git ref", g.Ref)
	}
	if g.Bundle && (g.KeepDir || g.Subdir != "") {
		return invalidf("a git bundle has neither a .git directory nor subdirectories")
	}
	if g.BundleFrom == "" {
		return nil
	}
	scheme, blob, _ := strings.Cut(g.BundleFrom, "://")
	_, d, _ := strings.Cut(blob, "@")
	if dgst, err := digest.Parse(d); err != nil || dgst.Algorithm() != digest.SHA256 || scheme != schemeImageBlob && scheme != schemeOCIBlob {
		return invalidf("the git bundle %q is not a blob with a sha256 digest", g.BundleFrom)
	}
	if g.Checksum == "" {
		return invalidf("commits from a git bundle need a checksum (%s)", pb.AttrGitChecksum)
	}
	if commit.MatchString(g.Ref) && !strings.HasPrefix(g.Ref, g.Checksum) {
		return invalidf("the git ref is the commit %s, but the checksum is %s", g.Ref, g.Checksum)
	}
	return nil
}
