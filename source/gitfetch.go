package source

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Fetch makes a layer of the checkout. The draft is not committed.
func (g *Git) Fetch(ctx context.Context, op *graph.Git, vertex graph.Digest) (*tree.Stack, error) {
	k, done, err := g.open(ctx, op)
	if err != nil {
		return nil, err
	}
	defer done()
	k.vertex = vertex
	draft, err := g.env.Hold.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.into(ctx, draft.Dir); err != nil {
		draft.Discard()
		return nil, err
	}
	size, files, err := measure(draft.Dir)
	if err != nil {
		draft.Discard()
		return nil, err
	}
	return tree.NewDraftStack(g.env.Store, nil, draft, store.LayerInfo{Size: size, Files: files}), nil
}

// checkout is a repository of which one commit is used. It is this one's alone until it is done.
type checkout struct {
	g      *Git
	op     *graph.Git
	c      commit
	remote remoteURL
	run    *gitRunner
	vertex graph.Digest
	temp   string
	bare   string

	fetched bool // something was added to the repository
}

// open brings the commit and its files into the bare repository of its remote.
func (g *Git) open(ctx context.Context, op *graph.Git) (*checkout, func(), error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return nil, nil, err
	}
	remote, err := g.remote(ctx, op)
	if err != nil {
		return nil, nil, err
	}
	run, stop, err := g.runner(ctx, op, remote)
	if err != nil {
		return nil, nil, err
	}
	temp, cleanup, err := g.env.Store.TempDir("git")
	if err != nil {
		stop()
		return nil, nil, err
	}
	k := &checkout{g: g, op: op, c: *c, remote: remote, run: run, temp: temp}
	// What a bundle brings is kept apart: who has a bundle need not be able to read the remote that it is said to be of.
	id := remote.arg + k.format() + op.BundleFrom
	if g.env.Client.Tenant != "" {
		id += "\x00" + g.env.Client.Tenant
	}
	k.bare = filepath.Join(g.puller.gitDir(g.env.Client.Tenant), digest.FromString(id).Encoded())
	release, err := g.locks.take(ctx, "repository "+filepath.Base(k.bare))
	if err != nil {
		cleanup()
		stop()
		return nil, nil, err
	}
	done := func() {
		release()
		cleanup()
		stop()
		if k.fetched { // what is not removed now is found the next time
			_ = g.puller.TrimRepositories(ctx, g.env.Client.Tenant, g.env.Store.Cap())
		}
	}
	if err := k.objects(ctx); err != nil {
		done()
		return nil, nil, err
	}
	return k, done, nil
}

// format is what the repository's objects are named by, where it is not sha1.
func (k *checkout) format() string {
	if len(k.c.sha) == 64 {
		return "sha256"
	}
	return ""
}

// init makes a repository.
func (k *checkout) init(ctx context.Context, dir string, flags ...string) error {
	args := append([]string{"init", "-q"}, flags...)
	if f := k.format(); f != "" {
		args = append(args, "--object-format="+f)
	}
	_, err := k.run.git(ctx, "", append(args, "--", dir)...)
	return err
}

func (k *checkout) into(ctx context.Context, dir string) error {
	if err := k.verify(ctx); err != nil {
		return err
	}
	if k.op.Bundle {
		k.run.allow(dir)
		return k.bundle(ctx, dir)
	}
	work := filepath.Join(k.temp, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	modules := false
	if !k.op.SkipSubmodules {
		_, err := k.run.git(ctx, k.bare, "cat-file", "-e", k.c.sha+":.gitmodules")
		modules = err == nil
	}
	make := k.files
	if k.op.KeepDir || modules {
		make = k.repository
	}
	if err := make(ctx, work); err != nil {
		return err
	}
	if modules {
		if err := k.submodules(ctx, work); err != nil {
			return err
		}
	}
	if modules && !k.op.KeepDir {
		if err := removeGit(work); err != nil {
			return err
		}
	}
	if k.op.MTimeCommit {
		if err := k.times(ctx, work); err != nil {
			return err
		}
	}
	return k.publish(work, dir)
}

// objects makes sure that the bare repository has the commit.
func (k *checkout) objects(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(k.bare), 0o700); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(k.bare, "HEAD"))
	if err != nil {
		if err := os.RemoveAll(k.bare); err != nil { // what is left of one that was being removed
			return err
		}
		if err := os.Mkdir(k.bare, 0o700); err != nil {
			return err
		}
	}
	k.run.allow(k.bare, k.temp)
	if err != nil {
		if err := k.init(ctx, k.bare, "--bare"); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(k.bare, "description"), []byte(k.remote.arg+"\n"+k.g.env.Client.Tenant+"\n"), 0o600); err != nil {
			return err
		}
	}
	now := time.Now()
	if err := os.Chtimes(k.bare, now, now); err != nil { // what was used longest ago is collected first
		return err
	}
	for _, lock := range []string{"shallow.lock", "index.lock"} { // of a git that was killed; we hold the repository
		_ = os.Remove(filepath.Join(k.bare, lock))
	}
	if k.op.BundleFrom != "" {
		return k.unbundle(ctx)
	}
	if err := k.fetchCommit(ctx); err != nil {
		return err
	}
	return k.peel(ctx)
}

// peel finds the commit behind an id that turned out to be that of an annotated tag, and checks what the remote said of a tag.
func (k *checkout) peel(ctx context.Context) error {
	if k.c.tag == "" {
		if kind, err := k.kind(ctx, k.c.sha); err != nil || kind != "tag" {
			return err
		}
		k.c.tag = k.c.sha
	} else if _, err := k.kind(ctx, k.c.tag); err != nil {
		k.c.tag = "" // the server gave the commit only
		return nil
	}
	commit, err := k.run.git(ctx, k.bare, "rev-parse", "--verify", "-q", k.c.tag+"^{commit}")
	if err != nil {
		return err
	}
	commit = strings.TrimSpace(commit)
	if k.c.tag != k.c.sha && commit != k.c.sha {
		return diag.Errorf(diag.Denied, "%s says that its tag %s is commit %s, but it is %s", k.remote.arg, k.c.tag, k.c.sha, commit)
	}
	k.c.sha = commit
	return nil
}

// kind is "commit", "tag" or what else an object is.
func (k *checkout) kind(ctx context.Context, id string) (string, error) {
	out, err := k.run.git(ctx, k.bare, "cat-file", "-t", id)
	return strings.TrimSpace(out), err
}

// fetchCommit asks the remote for the commit unless it is there.
func (k *checkout) fetchCommit(ctx context.Context) error {
	full := k.op.Bundle // a bundle of a shallow history cannot be cloned
	if k.have(ctx) && (!full || !k.shallow()) {
		return nil
	}
	depth := []string{"--depth=1"}
	if full {
		depth = nil
		if k.shallow() {
			depth = []string{"--unshallow"}
		}
	}
	var err error
	if k.c.ref != "" && !k.op.FetchByCommit {
		if err = k.fetch(ctx, depth, "+"+k.c.ref+":refs/strata/"+k.c.sha); err == nil && k.have(ctx) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if byCommit := k.fetch(ctx, depth, "+"+k.c.sha+":refs/strata/"+k.c.sha); byCommit == nil && k.have(ctx) {
		return nil
	} else if ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err == nil {
		err = byCommit
	}
	// Not every server gives out a commit by its id, and the branch may have moved on: ask for everything.
	if all := k.fetch(ctx, unshallow(k.shallow()), "+refs/heads/*:refs/strata-heads/*", "+refs/tags/*:refs/strata-tags/*"); all != nil {
		if err == nil {
			err = all
		}
		return err
	}
	if !k.haveCommit(ctx) { // the tag may have been moved, and then it cannot be had any more
		return diag.Errorf(diag.NotFound, "%s has no commit %s", k.remote.arg, k.c.sha)
	}
	return nil
}

func unshallow(shallow bool) []string {
	if shallow {
		return []string{"--unshallow"}
	}
	return nil
}

func (k *checkout) shallow() bool {
	info, err := os.Stat(filepath.Join(k.bare, "shallow"))
	return err == nil && info.Size() > 0
}

// have reports whether the commit and all its files are there, and the tag that leads to it if it matters.
func (k *checkout) have(ctx context.Context) bool {
	if k.c.tag != "" && !k.op.FetchByCommit {
		if _, err := k.kind(ctx, k.c.tag); err != nil {
			return false
		}
	}
	return k.haveCommit(ctx)
}

func (k *checkout) haveCommit(ctx context.Context) bool {
	kind, err := k.kind(ctx, k.c.sha)
	return err == nil && (kind == "commit" || kind == "tag")
}

// fetch asks for refs. A server of mere files cannot give a part of the history: then all of it is asked for.
func (k *checkout) fetch(ctx context.Context, flags []string, specs ...string) error {
	at, err := k.g.address(ctx, k.remote)
	if err != nil {
		return err
	}
	args := func(flags []string) []string {
		a := append([]string{"fetch", "-q", "--no-tags", "--force", "--no-recurse-submodules"}, flags...)
		return append(append(a, "--", at), specs...)
	}
	k.fetched = true
	_, err = k.run.git(ctx, k.bare, args(flags)...)
	if len(flags) > 0 && dumb(err) {
		_, err = k.run.git(ctx, k.bare, args(nil)...)
	}
	return err
}

// dumb reports whether a command failed because the server cannot cut the history.
func dumb(err error) bool {
	return err != nil && strings.Contains(err.Error(), "does not support shallow")
}

// measure counts the bytes and the inodes of a layer.
func measure(dir string) (size, files int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		if e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil
	})
	return size, files, err
}
