package source

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Fetch makes a layer of the checkout. The draft is not committed.
func (g *Git) Fetch(ctx context.Context, op *graph.Git) (*tree.Stack, error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return nil, err
	}
	remote, err := parseRemote(op.Remote, g.allowFile)
	if err != nil {
		return nil, err
	}
	run, done, err := g.runner(ctx, op, remote)
	if err != nil {
		return nil, err
	}
	defer done()
	draft, err := g.env.Hold.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	temp, cleanup, err := g.env.Store.TempDir("git")
	if err != nil {
		draft.Discard()
		return nil, err
	}
	defer cleanup()
	k := &checkout{g: g, op: op, c: c, remote: remote, run: run, temp: temp}
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

// checkout is the work of one Fetch.
type checkout struct {
	g      *Git
	op     *graph.Git
	c      *commit
	remote remoteURL
	run    *gitRunner
	temp   string
	bare   string
}

func (k *checkout) into(ctx context.Context, dir string) error {
	name := digest.FromString(k.remote.arg).Encoded()
	release, err := k.g.locks.take(ctx, "repository "+name)
	if err != nil {
		return err
	}
	defer release()
	k.bare = filepath.Join(k.g.env.Store.Root(), "git", name)
	if err := k.objects(ctx); err != nil {
		return err
	}
	if k.op.Signature != nil {
		if err := k.verify(ctx); err != nil {
			return err
		}
	}
	if k.op.Bundle {
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
	if k.op.KeepDir || modules {
		err = k.repository(ctx, work, modules)
	} else {
		err = k.files(ctx, work)
	}
	if err != nil {
		return err
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
	if _, err := os.Stat(filepath.Join(k.bare, "HEAD")); err != nil {
		if _, err := k.run.git(ctx, "", "init", "-q", "--bare", "--", k.bare); err != nil {
			return err
		}
	}
	for _, lock := range []string{"shallow.lock", "index.lock"} { // of a git that was killed; we hold the repository
		_ = os.Remove(filepath.Join(k.bare, lock))
	}
	if k.op.BundleFrom != "" {
		return k.unbundle(ctx)
	}
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
	if !k.have(ctx) {
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

// have reports whether the commit and all its files are there.
func (k *checkout) have(ctx context.Context) bool {
	out, err := k.run.git(ctx, k.bare, "cat-file", "-t", k.c.sha)
	return err == nil && strings.TrimSpace(out) == "commit"
}

func (k *checkout) fetch(ctx context.Context, flags []string, specs ...string) error {
	args := append([]string{"fetch", "-q", "--no-tags", "--force", "--no-recurse-submodules"}, flags...)
	args = append(append(args, "--", k.remote.arg), specs...)
	_, err := k.run.git(ctx, k.bare, args...)
	return err
}

// files writes the commit's files without a repository around them.
func (k *checkout) files(ctx context.Context, work string) error {
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(k.temp, "index"), "GIT_WORK_TREE=" + work, "GIT_DIR=" + k.bare}
	if _, err := k.run.gitEnv(ctx, work, env, "read-tree", k.c.sha); err != nil {
		return err
	}
	_, err := k.run.gitEnv(ctx, work, env, "checkout-index", "-q", "-a", "-f")
	return err
}

// repository makes a clone of one commit, and its submodules if wanted.
func (k *checkout) repository(ctx context.Context, work string, modules bool) error {
	steps := [][]string{
		{"init", "-q"},
		{"-c", "protocol.file.allow=always", "fetch", "-q", "--no-tags", "--depth=1", "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack", "--", "file://" + k.bare, k.c.sha},
		{"remote", "add", "origin", "--", k.remote.arg},
	}
	if branch, ok := strings.CutPrefix(k.c.ref, "refs/heads/"); ok {
		steps = append(steps, []string{"checkout", "-q", "-f", "-B", branch, k.c.sha, "--"})
	} else {
		steps = append(steps, []string{"checkout", "-q", "-f", "--detach", k.c.sha, "--"})
	}
	if tag, ok := strings.CutPrefix(k.c.ref, "refs/tags/"); ok {
		steps = append(steps, []string{"tag", "--", tag, k.c.sha})
	}
	if modules {
		steps = append(steps, []string{"submodule", "update", "-q", "--init", "--recursive", "--depth=1", "--force"})
	}
	for i, args := range steps {
		var env []string
		if i == 1 { // our own repository, whatever the remote's protocol may be
			env = []string{"GIT_ALLOW_PROTOCOL=file"}
		}
		if _, err := k.run.gitEnv(ctx, work, env, args...); err != nil {
			return err
		}
	}
	if k.op.KeepDir {
		_ = os.Remove(filepath.Join(work, ".git", "FETCH_HEAD")) // names a path of this machine
		return os.RemoveAll(filepath.Join(work, ".git", "hooks"))
	}
	return filepath.WalkDir(work, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != ".git" {
			return err
		}
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// publish moves the checkout, or a directory of it, into the layer.
func (k *checkout) publish(work, dir string) error {
	from := work
	if sub := filepath.Clean("/" + k.op.Subdir); sub != "/" {
		var err error
		if from, err = securejoin.SecureJoin(work, sub); err != nil { // symlinks stay inside of the checkout
			return diag.Errorf(diag.Invalid, "%s: %w", k.op.Subdir, err)
		}
		info, err := os.Lstat(from)
		if err != nil {
			return diag.Errorf(diag.NotFound, "%s has no directory %q at %s", k.remote.arg, k.op.Subdir, k.c.sha)
		}
		if !info.IsDir() {
			return diag.Errorf(diag.Invalid, "%q of %s is no directory", k.op.Subdir, k.remote.arg)
		}
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if k.op.KeepDir && from != work {
		if err := os.Rename(filepath.Join(work, ".git"), filepath.Join(dir, ".git")); err != nil {
			return err
		}
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return os.Chtimes(dir, info.ModTime(), info.ModTime())
}

// times gives every file the time of the commit, so that equal commits make equal layers.
func (k *checkout) times(ctx context.Context, work string) error {
	out, err := k.run.git(ctx, k.bare, "show", "-s", "--format=%ct", k.c.sha, "--")
	if err != nil {
		return err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return diag.Errorf(diag.Internal, "git gave the commit's time as %q", out)
	}
	ts := []unix.Timespec{unix.NsecToTimespec(time.Unix(sec, 0).UnixNano()), unix.NsecToTimespec(time.Unix(sec, 0).UnixNano())}
	return filepath.WalkDir(work, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// bundle writes the commit with its history as one file named "bundle".
func (k *checkout) bundle(ctx context.Context, dir string) error {
	ref := k.c.ref
	if ref == "" || ref == "HEAD" {
		ref = "refs/heads/main"
	}
	repo := filepath.Join(k.temp, "bundle.git")
	if _, err := k.run.git(ctx, "", "init", "-q", "--bare", "--", repo); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(repo, "objects", "info", "alternates"), []byte(filepath.Join(k.bare, "objects")+"\n"), 0o600); err != nil {
		return err
	}
	target := k.c.sha
	if k.c.tag != "" {
		target = k.c.tag
	}
	if _, err := k.run.git(ctx, repo, "update-ref", ref, target); err != nil {
		return err
	}
	_, err := k.run.git(ctx, repo, "bundle", "create", "-q", filepath.Join(dir, "bundle"), ref)
	return err
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
