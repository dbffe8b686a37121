package source

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
)

// files writes the commit's files without a repository around them.
func (k *checkout) files(ctx context.Context, work string) error {
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(k.temp, "index"), "GIT_WORK_TREE=" + work, "GIT_DIR=" + k.bare}
	if _, err := k.run.gitEnv(ctx, work, env, "read-tree", k.c.sha); err != nil {
		return err
	}
	_, err := k.run.gitEnv(ctx, work, env, "checkout-index", "-q", "-a", "-f")
	return err
}

// repository makes a clone of one commit, on a detached HEAD, with the ref that led to it.
func (k *checkout) repository(ctx context.Context, work string) error {
	if err := k.init(ctx, work); err != nil {
		return err
	}
	object := k.c.sha
	if k.c.tag != "" {
		object = k.c.tag
	}
	env := []string{"GIT_ALLOW_PROTOCOL=file"} // our own repository, whatever the remote's protocol may be
	pack := "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack"
	if _, err := k.run.gitEnv(ctx, work, env, "-c", "protocol.file.allow=always", "fetch", "-q", "--no-tags", "--depth=1", pack, "--", "file://"+k.bare, object); err != nil {
		return err
	}
	steps := [][]string{{"remote", "add", "origin", "--", k.remote.arg}}
	if strings.HasPrefix(k.c.ref, "refs/") {
		steps = append(steps, []string{"update-ref", k.c.ref, object})
	}
	for _, args := range steps {
		if _, err := k.run.git(ctx, work, args...); err != nil {
			return err
		}
	}
	if err := k.detach(ctx, work); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(work, ".git", "FETCH_HEAD")) // names a path of this machine
	return os.RemoveAll(filepath.Join(work, ".git", "hooks"))
}

// detach checks the commit out. What git has to say about that is for those who asked for advice.
func (k *checkout) detach(ctx context.Context, work string) error {
	if !k.op.Advice {
		_, err := k.run.git(ctx, work, "checkout", "-q", "-f", "--detach", k.c.sha, "--")
		return err
	}
	said, err := k.run.said(ctx, work, "-c", "advice.detachedHead=true", "checkout", "-f", k.c.sha, "--")
	if err != nil {
		return err
	}
	k.g.env.Progress.Emit(event.Event{Kind: event.Log, Vertex: k.vertex, Stream: 2, Data: []byte(said)})
	return nil
}

func (k *checkout) submodules(ctx context.Context, work string) error {
	args := []string{"submodule", "update", "-q", "--init", "--recursive", "--force"}
	k.run.rights.Ports = nil // they may be anywhere
	_, err := k.run.git(ctx, work, append(args, "--depth=1")...)
	if dumb(err) {
		_, err = k.run.git(ctx, work, args...)
	}
	return err
}

// removeGit removes the repositories of a checkout and of its submodules.
func removeGit(work string) error {
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
	at, err := k.time(ctx)
	if err != nil {
		return err
	}
	ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano())}
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
	if !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/main"
	}
	repo := filepath.Join(k.temp, "bundle.git")
	if err := k.init(ctx, repo, "--bare"); err != nil {
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
