package tree

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// WriteFile makes a regular file where p resolves to, in the place of any other file that is no directory. What is there is
// never opened.
func (u *Upper) WriteFile(p string, data []byte, m Meta) error {
	n, err := u.all.find(p, true)
	if err != nil {
		return err
	}
	if n.isDir() || n.rel == "" {
		return diag.Errorf(diag.Invalid, "%q is a directory", "/"+n.rel)
	}
	host, err := u.place(&n)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	u.bytes.Add(int64(len(data)))
	if err := u.own(host, m.Mode, m.UID, m.GID); err != nil {
		return err
	}
	return u.stamp(n.rel, m.Time)
}

func (u *Upper) stamp(rel string, t *time.Time) error {
	if t == nil {
		return nil
	}
	if err := setTimes(u.fd, rel, t.UnixNano()); err != nil {
		return &os.PathError{Op: "utimes", Path: "/" + rel, Err: err}
	}
	return nil
}

// place makes room for a file that is no directory.
func (u *Upper) place(n *node) (host string, err error) {
	if _, err := u.parent(n.rel); err != nil {
		return "", err
	}
	host = u.draft.Dir + "/" + n.rel
	if _, err := u.vacate(host); err != nil {
		return "", &os.PathError{Op: "remove", Path: "/" + n.rel, Err: err}
	}
	u.files.Add(1)
	return host, nil
}

// Symlink makes a symlink. The path must not exist.
func (u *Upper) Symlink(target, p string, m Meta) error {
	n, err := u.all.find(p, true)
	if err != nil {
		return err
	}
	if n.ok {
		return diag.Errorf(diag.Invalid, "%q exists", path.Join("/", p))
	}
	host, err := u.place(&n)
	if err != nil {
		return err
	}
	if err := unix.Symlink(target, host); err != nil {
		return &os.PathError{Op: "symlink", Path: "/" + n.rel, Err: err}
	}
	if err := unix.Lchown(host, int(m.UID), int(m.GID)); err != nil {
		return &os.PathError{Op: "chown", Path: "/" + n.rel, Err: err}
	}
	return u.stamp(n.rel, m.Time)
}

// Remove removes a file or a directory with all that is in it. The last component is not followed. What does not exist is
// diag.NotFound, unless quiet is set.
func (u *Upper) Remove(p string, quiet bool) error {
	p = path.Join("/", p)
	if p == "/" {
		return diag.Errorf(diag.Invalid, "the root directory cannot be removed")
	}
	dir, err := u.all.find(path.Dir(p), true)
	if err != nil {
		return err
	}
	n, err := u.all.child(&dir, path.Base(p))
	if err != nil {
		return err
	}
	if !n.ok {
		if quiet {
			return nil
		}
		return u.notFound(&dir, p)
	}
	if n.top == 0 {
		if _, err := u.vacate(u.draft.Dir + "/" + n.rel); err != nil {
			return &os.PathError{Op: "remove", Path: "/" + n.rel, Err: err}
		}
		if n, err = u.all.child(&dir, path.Base(p)); err != nil || !n.ok {
			return err
		}
	}
	if _, err := u.ensure(dir.rel); err != nil {
		return err
	}
	u.files.Add(1)
	if err := unix.Mknodat(u.fd, n.rel, unix.S_IFCHR, 0); err != nil {
		return &os.PathError{Op: "remove", Path: "/" + n.rel, Err: err}
	}
	return nil
}

func (u *Upper) notFound(dir *node, p string) error {
	var names []string
	for _, d := range dir.dirs {
		list, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range list {
			names = append(names, e.Name())
		}
	}
	if s := diag.Suggest(path.Base(p), names); s != "" {
		return noFile(p, "did you mean %q?", s)
	}
	return noFile(p, "")
}

// ReadFile is Files.ReadFile for what is written so far.
func (u *Upper) ReadFile(ctx context.Context, p string, limit int64) ([]byte, error) {
	f := newFiles(u.all, true)
	defer f.close()
	return f.ReadFile(ctx, p, limit)
}

// Mounted runs write with the merged tree mounted at dir: what it writes goes into the layer. It is for work that needs a
// real file system. dest is the directory that write fills; files and bytes, which it returns, are what it wrote.
func (u *Upper) Mounted(ctx context.Context, dest string, write func(dir string) (files, bytes int64, err error)) error {
	dir, cleanup, err := u.base.s.TempDir("write-")
	if err != nil {
		return err
	}
	unmount, err := u.base.Mount(ctx, dir, u.draft)
	if err != nil {
		cleanup()
		return err
	}
	u.opaque = true
	for rel := range u.times {
		if dest == "" || rel == dest || strings.HasPrefix(rel, dest+"/") {
			delete(u.times, rel)
		}
	}
	files, bytes, err := write(dir)
	u.files.Add(files)
	u.bytes.Add(bytes)
	if uerr := unmount(); uerr != nil {
		return errors.Join(err, uerr) // the mount point stays: what is mounted there must not be deleted
	}
	cleanup()
	return err
}

// Glob returns the paths that a pattern of path.Match names, sorted.
func (u *Upper) Glob(pattern string) ([]string, error) {
	f := newFiles(u.all, true) // a fresh picture of what is written so far
	defer f.close()
	if !graph.HasWildcard(pattern) {
		return []string{pattern}, nil
	}
	matches, err := f.glob(pattern, false)
	if diag.KindOf(err) == diag.NotFound {
		return nil, nil
	}
	var out []string
	for _, m := range matches {
		out = append(out, "/"+m.rel)
	}
	return out, err
}
