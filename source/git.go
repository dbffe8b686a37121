package source

import (
	"context"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Git checks repositories out for one build, with the git program, which is looked for when it is first needed. Objects
// are kept in one bare repository per remote and tenant below the store's root: a git that does not end, because the client's agent
// does not answer, holds its repository. A remote is never on this machine's file system: no
// client of an engine, and no submodule, can name a directory of the host.
type Git struct {
	env    Env
	puller *Puller
	locks  *locks // shared by all builds: one git per repository
	asking locks  // refs of remotes that this build asks for
	mu     sync.Mutex
	seen   map[string]*commit
	reach  map[string]bool   // remotes that this build's own login reads
	moved  map[string]string // where the servers of remotes send their readers
}

// NewGit starts a build's checkouts.
func (p *Puller) NewGit(env Env) *Git {
	return &Git{env: env, puller: p, locks: &p.locks, seen: map[string]*commit{}, reach: map[string]bool{}, moved: map[string]string{}}
}

// commit is what a ref means.
type commit struct {
	sha string // of the commit, 40 or 64 hex digits
	tag string // of the annotated tag that leads to it, or ""
	ref string // full name, "" if the ref was a commit
}

var shaPattern = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

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

// commit asks the remote once per build. A full commit id is only believed after the build has reached the remote.
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
	remote, err := g.remote(ctx, op)
	if err != nil {
		return nil, err
	}
	if op.FetchByCommit && !shaPattern.MatchString(op.Ref) {
		c, err := byCommit(op)
		if err != nil {
			return nil, err
		}
		return c, g.mayRead(ctx, op, remote)
	}
	id := remote.arg + "\n" + op.Ref
	release, err := g.asking.take(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	g.mu.Lock()
	c := g.seen[id]
	g.mu.Unlock()
	if c == nil {
		if shaPattern.MatchString(op.Ref) {
			if c, err = &(commit{sha: op.Ref}), g.mayRead(ctx, op, remote); err != nil {
				return nil, err
			}
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
	at, err := g.address(ctx, remote)
	if err != nil {
		return nil, err
	}
	args := []string{"ls-remote", "--symref", "--", at}
	if op.Ref == "" {
		args = append(args, "HEAD")
	} else {
		args = append(args, op.Ref, op.Ref+"^{}")
	}
	out, err := run.git(ctx, "", args...)
	if err != nil {
		return nil, err
	}
	g.reached(remote)
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
