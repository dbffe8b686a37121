package layer

import (
	"context"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Finish completes a layer directory that Apply made, once the layers below are known: lowerDirs, layer directories that
// are complete themselves, bottom first; none for the bottom layer. Implied directories get the owner, mode, attributes
// and time that the layers below give them; hard links to files below are made, with a copy of the file; what was
// unpacked into a directory that is a symlink below goes where the link leads, within the root; an opaque root becomes
// whiteouts, since overlayfs does not look at the mark there. If it fails, dir must be thrown away.
func Finish(ctx context.Context, dir string, applied *Applied, lowerDirs []string) error {
	t, err := openTarget(dir)
	if err != nil {
		return err
	}
	f := newFinisher(ctx, t, applied, lowerDirs)
	return t.confined(lowerDirs, func() error { return f.run(applied.OpaqueRoot) })
}

func newFinisher(ctx context.Context, t *target, applied *Applied, lowerDirs []string) *finisher {
	f := &finisher{ctx: ctx, t: t, lower: lowerDirs, implied: map[string]struct{}{}, links: map[string]string{}}
	for _, p := range applied.ImpliedDirs {
		f.implied[p] = struct{}{}
	}
	for _, l := range applied.LowerLinks {
		f.links[l.Path] = l.Target
	}
	t.made = func(p string) error {
		f.implied[p] = struct{}{}
		return nil
	}
	return f
}

type finisher struct {
	ctx     context.Context
	t       *target
	lower   lower
	implied map[string]struct{}
	links   map[string]string // path -> target
	moves   int
	work    int // names that were looked at for moves
}

// maxMoves bounds the directories of a layer that are symlinks below; images have a handful (/bin, /lib, /sbin). To move a
// directory looks at all names that are known of the layer: maxWork bounds them, over all moves.
const (
	maxMoves = 1000
	maxWork  = 50_000_000
)

func (f *finisher) run(opaqueRoot bool) error {
	if err := f.redirect(); err != nil {
		return err
	}
	if err := f.makeLinks(); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(f.implied)) {
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		if err := f.inherit(p); err != nil {
			return err
		}
	}
	if opaqueRoot {
		return f.hideAll()
	}
	return nil
}

// visible returns what the layers below show at p through this layer's own opaque directories and files.
func (f *finisher) visible(p string) (host string, st unix.Stat_t, ok bool, err error) {
	if len(f.lower) == 0 {
		return "", st, false, nil
	}
	if p != "." {
		dir, _ := split(p)
		if hidden, err := f.t.hidden(dir); hidden || err != nil {
			return "", st, false, err
		}
	}
	host, st, ok = f.lower.lookup(p)
	return host, st, ok, nil
}

// redirect moves what was unpacked into implied directories that are symlinks below. Parents come before children.
func (f *finisher) redirect() error {
	if len(f.lower) == 0 {
		return nil
	}
	todo := slices.Sorted(maps.Keys(f.implied))
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		if _, ok := f.implied[p]; !ok || p == "." {
			continue // moved away with its parent
		}
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		_, st, ok, err := f.visible(p)
		if err != nil {
			return err
		}
		if !ok || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return diag.Errorf(diag.Invalid, "%q: is not a directory in the layers below, but other entries are below it", p)
		}
		to, err := f.resolve(p)
		if err != nil {
			return err
		}
		if f.moves++; f.moves > maxMoves {
			return diag.Errorf(diag.Exhausted, "more than %d directories of the layer are symlinks in the layers below", maxMoves)
		}
		if err := f.move(p, to); err != nil {
			return err
		}
		f.work += len(f.implied)
		todo = slices.Sorted(maps.Keys(f.implied))
	}
	return nil
}

// resolve follows p in the stack: this layer over the ones below, where an implied directory is what the layers below
// say. The result has no symlinks in it; what does not exist is taken by its name.
func (f *finisher) resolve(p string) (string, error) {
	at := "."
	todo := strings.Split(p, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at, _ = split(at)
			continue
		}
		next := join(at, name)
		if len(next) > maxPath {
			return "", diag.Errorf(diag.Invalid, "%q: leads to a path of more than %d bytes", p, maxPath)
		}
		link, err := f.linkAt(next)
		if err != nil {
			return "", err
		}
		if link == "" {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", diag.Errorf(diag.Invalid, "%q: leads through more than %d symlinks", p, maxLinks)
		}
		if link[0] == '/' {
			at = "."
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return at, nil
}

// linkAt returns the target of the symlink that the stack has at p, "" if it is none.
func (f *finisher) linkAt(p string) (string, error) {
	dir, base := split(p)
	_, implied := f.implied[p]
	d, err := f.t.dir(dir)
	if err == nil && !implied {
		var st unix.Stat_t
		err = unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return readlink(d.fd, base, p)
			}
			return "", nil
		}
	}
	if err != nil && err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
		return "", sysError("stat", p, err)
	}
	host, st, ok, err := f.visible(p)
	if err != nil || !ok || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	return readlink(unix.AT_FDCWD, host, p)
}

func (f *finisher) gone(p string) {
	delete(f.implied, p)
	delete(f.links, p)
}

// renamed carries what is known of a path, and of what is below a directory, over to its new name.
func (f *finisher) renamed(from, to string, dir bool) error {
	move := func(p string) {
		name := to + p[len(from):]
		if _, ok := f.implied[p]; ok {
			delete(f.implied, p)
			f.implied[name] = struct{}{}
		}
		if target, ok := f.links[p]; ok {
			delete(f.links, p)
			f.links[name] = target
		}
	}
	move(from)
	if !dir {
		return nil
	}
	if f.work += len(f.implied) + len(f.links); f.work > maxWork {
		return diag.Errorf(diag.Exhausted, "too much of the layer is below symlinks of the layers below: %d names for each of its directories", len(f.implied)+len(f.links))
	}
	var below []string
	for p := range f.implied {
		if within(p, from) {
			below = append(below, p)
		}
	}
	for p := range f.links {
		if within(p, from) {
			below = append(below, p)
		}
	}
	for _, p := range below {
		move(p)
	}
	return nil
}

// hideAll makes whiteouts of all that the layers below have in the root and this one has not.
func (f *finisher) hideAll() error {
	root := f.t.root
	names, err := f.lower.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Mknodat(root.fd, n, unix.S_IFCHR, 0)
		if err == nil {
			root.touched = true
			continue
		}
		if err != unix.EEXIST {
			return sysError("make the whiteout of", n, err)
		}
		d, err := f.t.child(root, n)
		if err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return sysError("open", n, err)
		}
		if err := setOpaque(d); err != nil {
			return err
		}
	}
	for _, name := range []string{xattrOpaque, xattrUserOpaque} {
		if err := unix.Fremovexattr(root.fd, name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return sysError("remove xattr "+name+" of", ".", err)
		}
	}
	return nil
}
