package op

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/tree"
)

// fileCopy is one copy action.
type fileCopy struct {
	*graph.Copy
	l       *fileLayer
	from    *tree.Files
	own     ids
	parents tree.Meta // of directories that are made on the way to the destination
	opt     tree.CopyOptions
}

func (l *fileLayer) copy(ctx context.Context, a *graph.Action, own ids) error {
	c := &fileCopy{Copy: a.Copy, l: l, own: own, parents: own.meta(0o755, a.Copy.Time)}
	c.opt = tree.CopyOptions{Time: c.Time, Replace: c.AlwaysReplace, Earlier: l.earlier}
	if err := c.setOwn(); err != nil {
		return err
	}
	files, local, err := l.run.picture(ctx, a.From)
	if err != nil {
		return err
	}
	c.from = files
	if !c.CreateDest {
		at, err := l.u.Stat(path.Join("/", c.Dest), true)
		if err != nil {
			return err
		}
		parent, err := l.u.Stat(path.Dir("/"+at.Rel), false)
		if err != nil {
			return err
		}
		if !parent.Exists {
			return diag.Errorf(diag.NotFound, "%q: not found: the directory of the destination does not exist", "/"+parent.Rel)
		}
	}
	matches, err := files.Pick(ctx, graph.Select{
		Path: c.Src, Wildcard: c.Wildcard, Follow: c.FollowSymlink,
		Include: c.Include, Exclude: c.Exclude, Required: c.Required,
	}, local)
	if err != nil {
		return err
	}
	if len(matches) == 0 && !c.AllowEmpty {
		return diag.Errorf(diag.NotFound, "%q matches nothing", path.Join("/", c.Src))
	}
	for i := range matches {
		if c.Unpack {
			if done, err := c.unpack(ctx, &matches[i]); err != nil || done {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := c.one(ctx, &matches[i]); err != nil {
			return err
		}
	}
	return nil
}

// setOwn says what owner and mode the copies get.
func (c *fileCopy) setOwn() error {
	var changes []modeChange
	if c.ModeStr != "" {
		var err error
		if changes, err = parseMode(c.ModeStr); err != nil {
			return err
		}
	} else if c.Mode != nil {
		c.parents.Mode = *c.Mode & 0o777
	}
	if changes == nil && c.Mode == nil && !c.own.set {
		return nil
	}
	c.opt.Own = func(mode, uid, gid uint32) (uint32, uint32, uint32) {
		switch {
		case changes != nil:
			mode = applyMode(changes, mode)
		case c.Mode != nil:
			mode = *c.Mode & 0o7777
		}
		if c.own.set {
			uid, gid = c.own.uid, c.own.gid
		}
		return mode, uid, gid
	}
	return nil
}

// dest is the destination as it was written, but clean: a final "/" or "/." stays.
func (c *fileCopy) dest() string {
	p := path.Join("/", c.Dest)
	switch {
	case strings.HasSuffix(c.Dest, "/.") && p != "/":
		return p + "/."
	case strings.HasSuffix(c.Dest, "/") && p != "/":
		return p + "/"
	}
	return p
}

// one copies one match: into the destination if that is a directory (or ends in "/"), as the destination otherwise. What
// is in a directory goes into the destination if DirContents is set.
func (c *fileCopy) one(ctx context.Context, m *tree.Match) error {
	u := c.l.u
	dest := c.dest()
	made := dest
	if dir, file := path.Split(dest); file != "" && file != "." {
		made = dir
	}
	if err := u.MkdirAll(made, c.parents); err != nil {
		return err
	}
	at, err := u.Stat(dest, true)
	if err != nil {
		return err
	}
	target := at.Rel
	if !c.DirContents && m.IsDir() && at.Exists || !m.IsDir() && at.IsDir() {
		base := path.Base(m.Path)
		if strings.HasSuffix(c.Src, "/.") || base == "/" {
			base = "."
		}
		target = path.Join(target, base)
	}
	if target == "." {
		target = ""
	}
	parent := path.Dir("/" + target)
	if c.DirContents && m.IsDir() && !at.Exists {
		parent = "/" + target
	}
	if err := u.MkdirAll(parent, c.parents); err != nil {
		return err
	}
	return u.Copy(ctx, c.from, m, target, c.opt)
}

// unpack unpacks the match into the destination, if it is an archive.
func (c *fileCopy) unpack(ctx context.Context, m *tree.Match) (bool, error) {
	if m.IsLink() && !c.FollowSymlink {
		target, err := c.from.Pick(ctx, graph.Select{Path: m.Path, Follow: true}, false)
		if err != nil {
			if diag.KindOf(err) == diag.NotFound {
				err = nil // a dangling link is copied as it is
			}
			return false, err
		}
		m = &target[0]
	}
	if !m.IsRegular() || m.Size == 0 {
		return false, nil
	}
	f, err := c.from.Open(m)
	if err != nil {
		return false, err
	}
	defer f.Close()
	// A decompressor reads ahead, for a moment even after it was closed: each has a file offset of its own.
	if !isArchive(io.NewSectionReader(f, 0, m.Size)) {
		return false, nil
	}
	plain, _, err := layer.Decompress(io.NewSectionReader(f, 0, m.Size))
	if err != nil {
		return false, err
	}
	defer plain.Close()
	parents := c.own.meta(0o755, c.Time)
	if err := c.l.u.MkdirAll(c.dest(), parents); err != nil {
		return false, err
	}
	at, err := c.l.u.Stat(c.dest(), true)
	if err != nil {
		return false, err
	}
	opt := layer.ApplyOptions{Form: layer.Literal, KeepRoot: true, Confined: true, Packed: func() int64 { return m.Size }}
	if c.own.set {
		opt.Owner = &layer.Owner{UID: c.own.uid, GID: c.own.gid}
	}
	// The archive may write through symlinks and into directories of the layers below: the kernel merges that best. The
	// destination is the archive's root: its links lead nowhere else.
	err = c.l.u.Mounted(ctx, at.Rel, func(dir string) (int64, int64, error) {
		done, err := layer.Apply(ctx, plain, filepath.Join(dir, at.Rel), opt)
		if err != nil {
			return 0, 0, err
		}
		return done.Entries, done.Bytes, nil
	})
	if err != nil {
		return false, diag.Errorf(diag.KindOf(err), "cannot unpack %q: %w", m.Path, err)
	}
	return true, nil
}

// isArchive reports whether a file is a tar, perhaps compressed.
func isArchive(r io.Reader) bool {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil
}
