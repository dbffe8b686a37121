package source

import (
	"context"
	"encoding/base64"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
)

// Git checks repositories out for one build, with the git program, which is looked for when it is first needed. Objects
// are kept in one bare repository per remote below the store's root.
type Git struct {
	env       Env
	puller    *Puller
	locks     *locks // shared by all builds: one git per repository
	allowFile bool
	mu        sync.Mutex
	seen      map[string]*commit
}

// NewGit starts a build's checkouts. allowFile lets remotes be paths of this machine, which a server must not offer.
func (p *Puller) NewGit(env Env, allowFile bool) *Git {
	return &Git{env: env, puller: p, locks: &p.locks, allowFile: allowFile, seen: map[string]*commit{}}
}

// commit is what a ref means.
type commit struct {
	sha string // of the commit, 40 or 64 hex digits
	tag string // of the annotated tag that leads to it, or ""
	ref string // full name, "" if the ref was a commit
}

var shaPattern = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// remoteURL is a remote, checked and without secrets.
type remoteURL struct {
	arg    string // as git takes it
	origin string // scheme://host/ of http remotes, to bind credentials to; "" else
	login  *url.Userinfo
	ssh    bool
}

var scpPattern = regexp.MustCompile(`^([A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9.-]*:[^:]`)

// parseRemote accepts http, https, git and ssh URLs and the host:path form; file URLs and paths only if file is set.
func parseRemote(s string, file bool) (remoteURL, error) {
	if s == "" || s[0] == '-' || strings.ContainsAny(s, "\x00\n\r") {
		return remoteURL{}, diag.Errorf(diag.Invalid, "%q is no git remote", s)
	}
	if !strings.Contains(s, "://") {
		switch {
		case file && path.IsAbs(s):
			return remoteURL{arg: s}, nil
		case scpPattern.MatchString(s) && !strings.Contains(s, "::"):
			return remoteURL{arg: s, ssh: true}, nil
		}
		return remoteURL{}, diag.Errorf(diag.Invalid, "%q is no git remote", s).WithHint("use a URL such as https://host/repository.git or git@host:repository.git")
	}
	u, err := url.Parse(s)
	if err != nil {
		return remoteURL{}, diag.Errorf(diag.Invalid, "the git remote is no URL").WithHint("use a URL such as https://host/repository.git")
	}
	r := remoteURL{}
	u.Fragment, u.RawFragment = "", ""
	switch u.Scheme {
	case "http", "https":
		r.login, u.User = u.User, nil
		r.origin = u.Scheme + "://" + u.Host + "/"
	case "git":
		u.User = nil
	case "ssh":
		r.ssh = true
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
	case "file":
		if !file {
			return r, diag.Errorf(diag.Denied, "%s: git remotes on this machine are not allowed", registry.Redact(u))
		}
	default:
		return r, diag.Errorf(diag.Invalid, "git remotes of the protocol %q are not allowed", u.Scheme).WithHint("http, https, git and ssh are")
	}
	if u.Scheme != "file" && (u.Hostname() == "" || u.Hostname()[0] == '-') {
		return r, diag.Errorf(diag.Invalid, "%s names no host", registry.Redact(u))
	}
	r.arg = u.String()
	return r, nil
}

// checkRef refuses what git would take for an option, a pattern or a second ref.
func checkRef(ref string) error {
	if strings.HasPrefix(ref, "-") || strings.HasPrefix(ref, "/") || strings.Contains(ref, "..") || strings.Contains(ref, "@{") || strings.ContainsFunc(ref, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r)
	}) {
		return diag.Errorf(diag.Invalid, "%q is no name of a branch, tag or commit", ref)
	}
	return nil
}

// Pin finds the commit that the ref names now and returns a digest of it. The annotated tag that leads to it is part of it if
// the tag ends up in the checkout, or if its signature counts.
func (g *Git) Pin(ctx context.Context, op *graph.Git) (graph.Digest, error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return "", err
	}
	id := "git commit " + c.sha
	if c.tag != "" && (op.Signature != nil || op.KeepDir || op.Bundle) {
		id += " tag " + c.tag
	}
	return digest.FromString(id), nil
}

// Commit returns the commit's id in hex, for provenance.
func (g *Git) Commit(ctx context.Context, op *graph.Git) (string, error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return "", err
	}
	return c.sha, nil
}

var hexPattern = regexp.MustCompile(`^[0-9a-fA-F]+$`)

// commit asks the remote once per build, and not at all for a full commit id.
func (g *Git) commit(ctx context.Context, op *graph.Git) (*commit, error) {
	if err := checkRef(op.Ref); err != nil {
		return nil, err
	}
	if op.Checksum != "" && !hexPattern.MatchString(op.Checksum) {
		return nil, diag.Errorf(diag.Invalid, "invalid checksum %s for Git URL, expected hex commit hash", op.Checksum)
	}
	if op.BundleFrom != "" {
		return bundled(op)
	}
	remote, err := parseRemote(op.Remote, g.allowFile)
	if err != nil {
		return nil, err
	}
	if op.FetchByCommit && !shaPattern.MatchString(op.Ref) {
		return byCommit(op)
	}
	id := remote.arg + "\n" + op.Ref
	release, err := g.locks.take(ctx, "git "+id)
	if err != nil {
		return nil, err
	}
	defer release()
	g.mu.Lock()
	c := g.seen[id]
	g.mu.Unlock()
	if c == nil {
		if shaPattern.MatchString(op.Ref) {
			c = &commit{sha: op.Ref}
		} else if c, err = g.ask(ctx, op, remote); err != nil {
			return nil, err
		}
		g.mu.Lock()
		g.seen[id] = c
		g.mu.Unlock()
	}
	if sum := strings.ToLower(op.Checksum); !strings.HasPrefix(c.sha, sum) && (c.tag == "" || !strings.HasPrefix(c.tag, sum)) {
		got := c.sha
		if c.tag != "" {
			got = c.tag + " or " + c.sha
		}
		return nil, diag.Errorf(diag.Invalid, "%s of %s: expected checksum to match %s, got %s", refName(op.Ref), remote.arg, op.Checksum, got)
	}
	return c, nil
}

// byCommit believes the checksum: the remote is not asked what the ref means, which only names the commit in the checkout.
func byCommit(op *graph.Git) (*commit, error) {
	sha := strings.ToLower(op.Checksum)
	if !shaPattern.MatchString(sha) {
		return nil, diag.Errorf(diag.Invalid, "fetch-by-commit requires a full commit SHA checksum, got %q", op.Checksum)
	}
	return &commit{sha: sha, ref: fullRef(op.Ref)}, nil
}

// fullRef takes a short name for that of a branch. "" stays so.
func fullRef(ref string) string {
	if ref == "" || strings.HasPrefix(ref, "refs/") {
		return ref
	}
	return "refs/heads/" + ref
}

func refName(ref string) string {
	if ref == "" {
		return "the default branch"
	}
	return ref
}

// ask lists the remote's refs that can be meant.
func (g *Git) ask(ctx context.Context, op *graph.Git, remote remoteURL) (*commit, error) {
	run, done, err := g.runner(ctx, op, remote)
	if err != nil {
		return nil, err
	}
	defer done()
	args := []string{"ls-remote", "--symref", "--", remote.arg}
	if op.Ref == "" {
		args = append(args, "HEAD")
	} else {
		args = append(args, op.Ref, op.Ref+"^{}")
	}
	out, err := run.git(ctx, "", args...)
	if err != nil {
		return nil, err
	}
	c := chooseRef(out, op.Ref)
	if c == nil {
		return nil, diag.Errorf(diag.NotFound, "%s: repository does not contain ref %s", remote.arg, refName(op.Ref)).WithHint("a branch, a tag, a full commit id or a ref such as refs/pull/1/head is meant")
	}
	return c, nil
}

// chooseRef picks from ls-remote's lines: the exact name, then a branch, then a tag, then any other ref below refs/, as git
// checkout does. An annotated tag stands for its commit, which the remote lists as "name^{}". HEAD stands for a branch.
func chooseRef(out, ref string) *commit {
	found := map[string]string{}
	branch := ""
	for line := range strings.Lines(out) {
		sha, name, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok && shaPattern.MatchString(sha) {
			found[name] = sha
		}
		if target, isRef := strings.CutPrefix(sha, "ref: "); ok && isRef && name == "HEAD" && checkRef(target) == nil {
			branch = target
		}
	}
	if ref == "" {
		ref = "HEAD"
	}
	for _, name := range []string{ref, "refs/heads/" + ref, "refs/tags/" + ref, "refs/" + ref} {
		sha, ok := found[name]
		if !ok {
			continue
		}
		if peeled, ok := found[name+"^{}"]; ok {
			return &commit{sha: peeled, tag: sha, ref: name}
		}
		if name == "HEAD" && branch != "" {
			name = branch
		}
		return &commit{sha: sha, ref: name}
	}
	return nil
}

// authorization returns the header for the remote's own host, "" without a login.
func (g *Git) authorization(ctx context.Context, op *graph.Git, remote remoteURL) (string, error) {
	if remote.origin == "" {
		return "", nil
	}
	if remote.login != nil {
		password, _ := remote.login.Password()
		return "basic " + base64.StdEncoding.EncodeToString([]byte(remote.login.Username()+":"+password)), nil
	}
	if g.env.Session == nil {
		return "", nil
	}
	token := func(v string) string {
		return "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+v))
	}
	header := func(v string) string { return v }
	host := strings.TrimSuffix(remote.origin[strings.Index(remote.origin, "://")+len("://"):], "/")
	for _, s := range []struct {
		id, host string
		form     func(string) string
	}{
		{op.AuthHeader, "." + host, header}, {op.AuthToken, "." + host, token}, {op.AuthHeader, "", header}, {op.AuthToken, "", token},
	} {
		if s.id == "" {
			continue
		}
		v, err := g.env.Session.Secret(ctx, s.id+s.host)
		if diag.KindOf(err) == diag.NotFound && err != nil {
			continue // the default names are asked for whether they exist or not
		}
		if err != nil {
			return "", err
		}
		return s.form(strings.TrimSpace(string(v))), nil
	}
	return "", nil
}
