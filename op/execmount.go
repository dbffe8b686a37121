package op

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// output is what a step keeps of one mount: a new layer on a base, or for a mount that could not be written, the tree as
// it was.
type output struct {
	base  []store.LayerID
	draft *store.Draft
	same  tree.Tree
}

func (o output) discard() {
	if o.draft != nil {
		o.draft.Discard()
	}
	if st, ok := o.same.(*tree.Stack); ok {
		st.Discard()
	}
}

// results makes the trees of what was written. Nothing may be mounted any more.
func (s *execStep) results(ctx context.Context) ([]tree.Tree, error) {
	out := make([]tree.Tree, len(s.outputs))
	for i, o := range s.outputs {
		if o.same != nil {
			out[i] = o.same
			continue
		}
		info, err := measure(ctx, s.store, o, s.began)
		if err != nil {
			for _, o := range s.outputs {
				o.discard()
			}
			return nil, err
		}
		out[i] = tree.NewDraftStack(s.store, o.base, o.draft, info)
	}
	return out, nil
}

// measure describes a written layer, without what it has for nothing.
func measure(ctx context.Context, st *store.Store, o output, began time.Time) (store.LayerInfo, error) {
	base := tree.NewStack(st, o.base)
	defer base.Release()
	got, err := base.DropUnchanged(ctx, o.draft.Dir, began)
	if err != nil {
		return store.LayerInfo{}, diag.Errorf(diag.Internal, "cannot read the new layer: %w", err)
	}
	return store.LayerInfo{ID: o.draft.ID, Created: time.Now(), Files: got.Entries, Size: got.Bytes}, nil
}

// bind mounts an input, or an empty tree: the root, which can always be written to, a view that cannot, a draft that is kept, or one
// that is thrown away after the run.
func (s *execStep) bind(ctx context.Context, i int, m graph.Mount) error {
	root := m.Target == "/"
	if root && cleanSource(m.Source) != "/" {
		return diag.Errorf(diag.Unsupported, "the root of a step cannot be a part of a tree")
	}
	if m.ReadOnly && !root {
		return s.bindReadOnly(ctx, m)
	}
	base, draft, err := s.writable(ctx, m)
	if err != nil {
		return err
	}
	if m.Output != graph.None {
		s.outputs[m.Output] = output{base: base.IDs(), draft: draft}
	} else {
		s.dropped[i] = output{base: base.IDs(), draft: draft}
	}
	dir, err := s.tempDir()
	if err != nil {
		return err
	}
	unmount, err := base.Mount(ctx, dir, draft)
	if err != nil {
		return err
	}
	s.later(unmount)
	if root {
		s.spec.RootFS, s.spec.ReadOnlyRoot = dir, m.ReadOnly
		return nil
	}
	return s.bindSource(m, dir)
}

// input is the tree that a mount shows.
func (s *execStep) input(m graph.Mount) tree.Tree {
	if m.Input == graph.None {
		return s.scratch()
	}
	return s.in[m.Input]
}

// scratch is an empty tree for the time of the step.
func (s *execStep) scratch() *tree.Stack {
	t := tree.NewStack(s.store, nil)
	s.later(func() error { t.Release(); return nil })
	return t
}

// writable returns the layers below a mount that can be written, and a draft for what is written. A directory of the client is copied
// into the draft.
func (s *execStep) writable(ctx context.Context, m graph.Mount) (base *tree.Stack, draft *store.Draft, err error) {
	in := s.input(m)
	if local, ok := in.(*tree.Local); ok {
		copied, err := local.MaterializeToWrite(ctx, s.store, graph.Selector{Paths: []graph.Select{{Path: "/"}}})
		if err != nil {
			return nil, nil, err
		}
		draft, _ = copied.Pending()
		s.later(func() error { copied.Release(); return nil })
		in = s.scratch()
	}
	base, ok := in.(*tree.Stack)
	if !ok {
		return nil, nil, diag.Errorf(diag.Internal, "the mount at %s is of a tree that cannot be mounted (%T)", m.Target, in)
	}
	if draft == nil {
		draft, err = s.store.NewLayer(ctx)
	}
	return base, draft, err
}

// bindReadOnly mounts a view of an input.
func (s *execStep) bindReadOnly(ctx context.Context, m graph.Mount) error {
	in := s.input(m)
	if local, ok := in.(*tree.Local); ok {
		copied, err := local.Materialize(ctx, s.store, graph.Selector{Paths: []graph.Select{{Path: cleanSource(m.Source), Follow: true}}})
		if err != nil {
			return err
		}
		in = copied
		if m.Output == graph.None {
			s.later(func() error { copied.Discard(); return nil })
		}
	}
	view, err := in.Open(ctx)
	if err != nil {
		return err
	}
	s.later(view.Close)
	if m.Output != graph.None {
		s.outputs[m.Output] = output{same: in}
		if ids, ok := in.Layers(); ok { // a tree of its own: the caller releases inputs and outputs each
			s.outputs[m.Output] = output{same: tree.NewStack(s.store, ids)}
		}
	}
	return s.bindSource(m, view.Dir)
}

// bindSource mounts a path of a tree that is mounted at dir. The path is opened within the tree and the open file is mounted, so
// that a link in it, even one that another step puts there now, leads nowhere else.
func (s *execStep) bindSource(m graph.Mount, dir string) error {
	x := sandbox.Mount{Type: sandbox.Bind, Target: m.Target, ReadOnly: m.ReadOnly}
	if source := cleanSource(m.Source); source == "/" {
		x.Source = dir
	} else {
		f, err := openSource(m, dir)
		if err != nil {
			return err
		}
		s.later(f.Close)
		x.File = f
	}
	s.spec.Mounts = append(s.spec.Mounts, x)
	return nil
}

func openSource(m graph.Mount, dir string) (*os.File, error) {
	f, err := sandbox.OpenInRoot(dir, cleanSource(m.Source), unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, diag.Errorf(diag.NotFound, "%q, the source of the mount at %s, does not exist", m.Source, m.Target)
	}
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the source of the mount at %s: %w", m.Target, err)
	}
	return f, nil
}

func cleanSource(p string) string { return path.Join("/", p) }

// cacheMounts takes the step's cache mounts and returns their directories by the mounts' index. They are taken in the order of their
// keys, so that two steps that lock the same ones cannot wait for each other.
func (s *execStep) cacheMounts(ctx context.Context) (map[int]string, error) {
	type want struct {
		id, key string
		sharing graph.Sharing
		mounts  []int
	}
	var wants []*want
	for i, m := range s.op.Mounts {
		if m.Type != graph.MountCache {
			continue
		}
		var source graph.Digest
		if m.Input != graph.None {
			var err error
			if source, err = s.in[m.Input].Content(ctx, graph.Selector{Paths: []graph.Select{{Path: cleanSource(m.Source), Follow: true}}}); err != nil {
				return nil, err
			}
			if s.env.Source != nil {
				s.env.Source(m, source)
			}
		}
		id := m.CacheIdentity(source)
		key := store.MountKey(s.env.Tenant, id)
		at := slices.IndexFunc(wants, func(w *want) bool { return w.key == key })
		if at < 0 {
			wants, at = append(wants, &want{id: id, key: key, sharing: m.Sharing}), len(wants)
		}
		w := wants[at]
		w.mounts = append(w.mounts, i)
		if m.Sharing == graph.SharingLocked { // mounted twice: the stricter wish counts
			w.sharing = m.Sharing
		}
	}
	slices.SortFunc(wants, func(a, b *want) int { return strings.Compare(a.key, b.key) })
	dirs := map[int]string{}
	for _, w := range wants {
		m := s.op.Mounts[w.mounts[0]]
		m.Sharing = w.sharing
		dir, err := s.cacheMount(ctx, m, w.id, w.key)
		if err != nil {
			return nil, err
		}
		for _, i := range w.mounts {
			dirs[i] = dir
		}
	}
	return dirs, nil
}

func (s *execStep) cacheMount(ctx context.Context, m graph.Mount, id, key string) (string, error) {
	renewed := s.env.Renew != nil && s.env.Renew(key)
	var restore func(dir string) (bool, error)
	if s.env.Restore != nil && !renewed {
		restore = func(dir string) (bool, error) { return s.env.Restore(ctx, id, dir) }
	}
	fill := func(dir string) error {
		if restore != nil {
			if ok, err := restore(dir); ok || err != nil {
				return err
			}
		}
		return s.fillCache(ctx, m, dir)
	}
	if renewed {
		if err := s.store.DropCacheMount(key); err != nil {
			return "", err
		}
	}
	dir, release, err := s.store.CacheMount(ctx, key, m.Sharing, fill, restore)
	if err != nil {
		return "", err
	}
	s.later(func() error { release(); return nil })
	return dir, nil
}

// fillCache gives a new cache mount its first content and its owner.
func (s *execStep) fillCache(ctx context.Context, m graph.Mount, dir string) error {
	mode := m.Mode & 0o7777
	if m.Input != graph.None {
		if err := s.copyInput(ctx, m, dir); err != nil {
			return err
		}
	} else if mode == 0 {
		mode = 0o755
	}
	if m.Input == graph.None || m.UID != 0 || m.GID != 0 {
		if err := os.Chown(dir, m.UID, m.GID); err != nil {
			return err
		}
	}
	if mode == 0 {
		return nil
	}
	return unix.Chmod(dir, mode)
}

func (s *execStep) copyInput(ctx context.Context, m graph.Mount, dir string) error {
	in := s.in[m.Input]
	if local, ok := in.(*tree.Local); ok {
		copied, err := local.Materialize(ctx, s.store, graph.Selector{Paths: []graph.Select{{Path: cleanSource(m.Source), Follow: true}}})
		if err != nil {
			return err
		}
		defer copied.Discard()
		in = copied
	}
	view, err := in.Open(ctx)
	if err != nil {
		return err
	}
	defer view.Close()
	f, err := openSource(m, view.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.IsDir() {
		return diag.Errorf(diag.Invalid, "%q, the first content of the cache mount at %s, is not a directory", m.Source, m.Target)
	}
	if err := continuity.CopyDir(dir, fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())); err != nil {
		return diag.Errorf(diag.Unavailable, "cannot fill the cache mount at %s: %w", m.Target, err)
	}
	return nil
}
