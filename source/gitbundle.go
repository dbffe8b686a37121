package source

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// bundled returns the commit of a source whose commits come from a bundle (git-bundle(1)) that is a blob. The remote is never
// asked, so the checksum has to say which commit is meant.
func bundled(op *graph.Git) (*commit, error) {
	sha := strings.ToLower(op.Checksum)
	if !shaPattern.MatchString(sha) {
		return nil, diag.Errorf(diag.Invalid, "commits from a git bundle need a full commit id as the checksum, not %q", op.Checksum)
	}
	if shaPattern.MatchString(op.Ref) {
		return &commit{sha: sha}, nil
	}
	return &commit{sha: sha, ref: fullRef(op.Ref)}, nil
}

// unbundle brings the commits of the bundle into the bare repository.
func (k *checkout) unbundle(ctx context.Context) error {
	scheme, ref, _ := strings.Cut(k.op.BundleFrom, "://")
	blob := &graph.Blob{Ref: ref, Store: k.op.Store, Session: k.op.Session}
	switch scheme {
	case "docker-image+blob":
	case "oci-layout+blob":
		blob.Layout = true
		if blob.Store == "" {
			blob.Store, _, _ = strings.Cut(ref, "@")
		}
	default:
		return diag.Errorf(diag.Invalid, "%q is no git bundle: a docker-image+blob:// or an oci-layout+blob:// is meant", k.op.BundleFrom)
	}
	im := k.g.puller.Images(k.g.env)
	defer im.Close()
	d, err := im.PinBlob(ctx, blob)
	if err != nil {
		return err
	}
	if err := im.haveBlob(ctx, blob, d, ""); err != nil {
		return err
	}
	r, err := stored(ctx, k.g.env.Store, d)
	if err != nil {
		return err
	}
	defer r.Close()
	file := filepath.Join(k.temp, "bundle")
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	k.fetched = true
	env := []string{"GIT_ALLOW_PROTOCOL=file"} // our own copy, whatever the remote's protocol may be
	_, err = k.run.gitEnv(ctx, k.bare, env, "-c", "protocol.file.allow=always", "fetch", "-q", "--no-tags", "--force", "--no-recurse-submodules", "--", file, "+refs/*:refs/strata-bundle/"+d.Encoded()+"/*")
	if err != nil {
		return err
	}
	if !k.have(ctx) {
		return diag.Errorf(diag.NotFound, "the git bundle %s has no commit %s", ref, k.c.sha)
	}
	if k.c.ref == "" {
		return k.peel(ctx)
	}
	return k.bundledRef(ctx, "refs/strata-bundle/"+d.Encoded()+"/")
}

// bundledRef finds the ref of the source in the bundle: it must lead to the commit that the checksum names.
func (k *checkout) bundledRef(ctx context.Context, prefix string) error {
	names := []string{k.c.ref, "refs/tags/" + k.op.Ref}
	for _, name := range names {
		at, err := k.run.git(ctx, k.bare, "rev-parse", "--verify", "-q", prefix+strings.TrimPrefix(name, "refs/"))
		if err != nil {
			continue
		}
		peeled, err := k.run.git(ctx, k.bare, "rev-parse", "--verify", "-q", strings.TrimSpace(at)+"^{commit}")
		if err != nil {
			return err
		}
		at, peeled = strings.TrimSpace(at), strings.TrimSpace(peeled)
		if at != k.c.sha && peeled != k.c.sha {
			return diag.Errorf(diag.Invalid, "the git bundle's %s: expected checksum to match %s, got %s", name, k.c.sha, peeled)
		}
		k.c = commit{sha: peeled, ref: name}
		if at != peeled {
			k.c.tag = at
		}
		return nil
	}
	return diag.Errorf(diag.NotFound, "the git bundle: repository does not contain ref %s", k.op.Ref)
}
