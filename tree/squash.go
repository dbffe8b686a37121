package tree

import (
	"context"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

// layersDigest is the digest of the ordered diff_ids. Those that are not known yet are computed and kept.
func (t *Stack) layersDigest(ctx context.Context) (graph.Digest, error) {
	h := newContentHash()
	for _, id := range t.IDs() {
		info, err := t.s.Layer(id)
		if err != nil {
			return "", err
		}
		if info.DiffID == "" {
			d, stats, err := layer.DiffID(ctx, t.s.LayerDir(id), layer.TarOptions{})
			if err != nil {
				return "", err
			}
			info.DiffID, info.TarSize = d, stats.Size
			if err := t.s.Update(ctx, func(b *store.Batch) error { b.SetLayer(info); return nil }); err != nil {
				return "", err
			}
		}
		h.str(string(info.DiffID))
	}
	return digest.NewDigest(digest.SHA256, h.w), nil
}

// Squash merges the layers own, bottom first, into one new layer on top of base, which shows the same tree. Files are
// hard-linked, not copied. Whiteouts and opaque directories stay where they hide something of base, and go where they hide
// nothing. The result's top layer is pending; with less than two layers there is nothing to merge, and no new layer.
func Squash(ctx context.Context, s *store.Store, base, own []store.LayerID) (*Stack, error) {
	if len(own) < 2 {
		return NewStack(s, slices.Concat(base, own)), nil
	}
	draft, err := s.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	q := &squash{ctx: ctx, dst: draft.Dir, below: dirsOf(s, base), seen: map[inode]int{}}
	srcs := make([]source, 0, len(own))
	for i, dir := range dirsOf(s, own) {
		srcs = append(srcs, source{layer: i, host: dir})
	}
	root, err := q.below.root()
	if err == nil {
		err = q.root(srcs, &root)
	}
	if err != nil {
		draft.Discard()
		return nil, err
	}
	info := store.LayerInfo{ID: draft.ID, Size: q.bytes, Files: q.files, Created: time.Now()}
	return NewDraftStack(s, base, draft, info), nil
}

// dirsOf returns the directories of layers, top first.
func dirsOf(s *store.Store, ids []store.LayerID) layers {
	out := make(layers, len(ids))
	for i, id := range ids {
		out[len(ids)-1-i] = s.LayerDir(id)
	}
	return out
}

// squash is one merge of layers.
type squash struct {
	ctx          context.Context
	dst          string
	below        layers        // that stay
	seen         map[inode]int // files that have a name in the new layer -> the layer that it comes from
	files, bytes int64
}

// source is a file or directory of one of the merged layers, which are counted from the top.
type source struct {
	layer int
	host  string
	st    unix.Stat_t
}

func (q *squash) root(srcs []source, below *node) error {
	for i := range srcs {
		if err := unix.Lstat(srcs[i].host, &srcs[i].st); err != nil {
			return &os.PathError{Op: "lstat", Path: srcs[i].host, Err: err}
		}
		if hides, err := isOpaque(srcs[i].host); err != nil || hides {
			return q.opaqueRoot(srcs[:i+1], below, err)
		}
	}
	return q.dir("", srcs, below)
}

// opaqueRoot is for a layer that hides all that is below it, which overlayfs does not look at in a root directory.
func (q *squash) opaqueRoot(srcs []source, below *node, err error) error {
	if err == nil && len(below.dirs) > 0 {
		err = unix.Lsetxattr(q.dst, opaqueAttr, []byte("y"), 0)
	}
	if err != nil {
		return err
	}
	return q.dir("", srcs, &node{})
}

// dir fills the new layer's directory rel, which exists, with what srcs show, top first; below is what stays below it.
func (q *squash) dir(rel string, srcs []source, below *node) error {
	if err := q.ctx.Err(); err != nil {
		return context.Cause(q.ctx)
	}
	byName := map[string][]source{}
	for _, src := range srcs {
		fd, err := openRoot(src.host)
		if err != nil {
			return err
		}
		list, err := listDir(fd)
		unix.Close(fd)
		if err != nil {
			return &os.PathError{Op: "list", Path: "/" + rel, Err: err}
		}
		for _, e := range list {
			byName[e.name] = append(byName[e.name], source{layer: src.layer, host: src.host + "/" + e.name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if err := q.entry(joinRel(rel, name), name, byName[name], below); err != nil {
			return err
		}
	}
	return q.finishDir(rel, &srcs[0])
}

// listDir lists a directory that was opened with O_PATH.
func listDir(fd int) ([]dirent, error) {
	r, err := openIn(fd, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(r)
	return readNames(r, nil)
}

// finishDir gives a directory what the topmost layer says of it.
func (q *squash) finishDir(rel string, top *source) error {
	host := q.dst
	if rel != "" {
		host += "/" + rel
	}
	err := unix.Lchown(host, int(top.st.Uid), int(top.st.Gid))
	if err == nil {
		err = unix.Chmod(host, top.st.Mode&0o7777)
	}
	if err == nil {
		copyAttrs(top.host, host)
		ts := []unix.Timespec{top.st.Mtim, top.st.Mtim}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, host, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "set attributes", Path: "/" + rel, Err: err}
	}
	return nil
}

// entry merges what the layers have at one name, top first.
func (q *squash) entry(rel, name string, all []source, parent *node) error {
	below, err := q.below.child(parent, name)
	if err != nil {
		return err
	}
	var dirs []source
	hides := false // what is below the merged layers
	for i := range all {
		src := &all[i]
		if err := unix.Lstat(src.host, &src.st); err != nil {
			return &os.PathError{Op: "lstat", Path: "/" + rel, Err: err}
		}
		isDir := isType(src.st.Mode, unix.S_IFDIR)
		if len(dirs) > 0 && !isDir {
			hides = true
			break
		}
		switch {
		case isWhiteout(src.st.Mode, uint64(src.st.Rdev)):
			if !below.ok {
				return nil
			}
			return q.whiteout(rel)
		case !isDir:
			return q.place(rel, src)
		}
		dirs = append(dirs, *src)
		if hides, err = isOpaque(src.host); err != nil {
			return err
		}
		if hides {
			break
		}
	}
	host := q.dst + "/" + rel
	if err := unix.Mkdir(host, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: "/" + rel, Err: err}
	}
	q.files++
	if hides && below.isDir() {
		if err := unix.Lsetxattr(host, opaqueAttr, []byte("y"), 0); err != nil {
			return &os.PathError{Op: "setxattr", Path: "/" + rel, Err: err}
		}
	}
	if hides || !below.isDir() {
		below = node{rel: rel}
	}
	return q.dir(rel, dirs, &below)
}

func (q *squash) whiteout(rel string) error {
	q.files++
	if err := unix.Mknod(q.dst+"/"+rel, unix.S_IFCHR, 0); err != nil {
		return &os.PathError{Op: "whiteout", Path: "/" + rel, Err: err}
	}
	return nil
}

// place links a file into the new layer. Layers share files by hard links; two of them would become names of one file, so
// the second is copied.
func (q *squash) place(rel string, src *source) error {
	q.files++
	host := q.dst + "/" + rel
	key := inode{dev: src.st.Dev, ino: src.st.Ino}
	from, taken := q.seen[key]
	if !taken || from == src.layer || !isType(src.st.Mode, unix.S_IFREG) {
		q.seen[key] = src.layer
		err := unix.Linkat(unix.AT_FDCWD, src.host, unix.AT_FDCWD, host, 0)
		switch err {
		case nil:
			return nil
		case unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP, unix.EMLINK:
		default:
			return &os.PathError{Op: "link", Path: "/" + rel, Err: err}
		}
	}
	if err := q.copy(host, src); err != nil {
		return diag.Errorf(diag.KindOf(err), "copy %q: %w", "/"+rel, err)
	}
	return nil
}

// copy makes a file that cannot be linked.
func (q *squash) copy(host string, src *source) error {
	var err error
	switch src.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = q.content(host, src)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(src.host); err == nil {
			err = unix.Symlink(target, host)
		}
	default:
		err = unix.Mknod(host, src.st.Mode, int(src.st.Rdev))
	}
	if err == nil {
		err = unix.Lchown(host, int(src.st.Uid), int(src.st.Gid))
	}
	if err == nil && !isType(src.st.Mode, unix.S_IFLNK) {
		err = unix.Chmod(host, src.st.Mode&0o7777)
	}
	if err != nil {
		return err
	}
	copyAttrs(src.host, host)
	ts := []unix.Timespec{src.st.Mtim, src.st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, host, ts, unix.AT_SYMLINK_NOFOLLOW)
}

func (q *squash) content(host string, src *source) error {
	in, err := os.Open(src.host)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	q.bytes += n
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
