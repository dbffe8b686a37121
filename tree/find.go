package tree

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// maxLinks bounds the symlinks of one path, as the kernel does.
const maxLinks = 255

// found is an existing path of a tree.
type found struct {
	e      *Entry
	parent *dir   // that has it, nil for the root
	rel    string // without symlinks and without a leading slash
}

// find looks a path up within the tree: symlinks and ".." never leave it. The last component is followed if follow is
// set. Call it with f.mu held.
func (f *Files) find(p string, follow bool) (found, error) {
	top, err := f.rootEntry()
	if err != nil {
		return found{}, err
	}
	trail := []*Entry{top} // the directories from the root to here; the last may be any file
	rels := []string{""}
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			n := max(len(trail)-1, 1)
			trail, rels = trail[:n], rels[:n]
			continue
		}
		at, rel := trail[len(trail)-1], rels[len(rels)-1]
		kid, err := f.child(at, name)
		if err != nil {
			return found{}, err
		}
		if kid == nil {
			return found{}, f.notFound(p, at, rel, name)
		}
		if kid.IsLink() && (follow || hasNames(rest)) {
			if links++; links > maxLinks {
				return found{}, diag.Errorf(diag.Invalid, "%q: too many symlinks", p)
			}
			rest = append(strings.Split(kid.Link, "/"), rest...)
			if strings.HasPrefix(kid.Link, "/") {
				trail, rels = trail[:1], rels[:1]
			}
			continue
		}
		trail, rels = append(trail, kid), append(rels, joinRel(rel, name))
	}
	last := len(trail) - 1
	at := found{e: trail[last], rel: rels[last]}
	if last > 0 {
		at.parent = trail[last-1].dir
	}
	return at, nil
}

func hasNames(parts []string) bool {
	return slices.ContainsFunc(parts, func(s string) bool { return s != "" && s != "." })
}

// child returns the entry of that name, nil if there is none or if e is no directory.
func (f *Files) child(e *Entry, name string) (*Entry, error) {
	if e.dir == nil {
		return nil, nil
	}
	if err := f.list(e.dir); err != nil {
		return nil, err
	}
	i, ok := slices.BinarySearchFunc(e.dir.kids, name, func(k Entry, s string) int { return strings.Compare(k.Name, s) })
	if !ok {
		return nil, nil
	}
	kid := &e.dir.kids[i]
	if err := f.look(e.dir, []*Entry{kid}); err != nil || kid.gone {
		return nil, err
	}
	return kid, nil
}

// noFile is the error of a path that does not exist, and why or what does. Its cause is what the system would have said.
func noFile(p, why string, args ...any) *diag.Error {
	if why != "" {
		why = ": " + why
	}
	err := diag.Errorf(diag.NotFound, "%q: not found"+why, append([]any{p}, args...)...)
	err.Err = &fs.PathError{Op: "lstat", Path: p, Err: syscall.ENOENT}
	return err
}

// notFound makes the error for a name that directory at does not have.
func (f *Files) notFound(p string, at *Entry, rel, name string) error {
	p = path.Join("/", p)
	if at.dir == nil {
		return noFile(p, "%q is not a directory", "/"+rel)
	}
	var names []string
	for i := range at.dir.kids {
		names = append(names, at.dir.kids[i].Name)
	}
	if rel == "" && len(names) == 0 && f.filter == nil {
		return noFile(p, "there are no files (lstat %s: no such file or directory)", p)
	}
	if s := diag.Suggest(name, names); s != "" {
		return noFile(p, "did you mean %q?", s)
	}
	err := noFile(p, "")
	if f.filter == nil || len(at.dir.srcs) == 0 {
		return err
	}
	if fd, e := f.open(at.dir.srcs[0], rel, unix.O_PATH|unix.O_DIRECTORY); e == nil {
		defer unix.Close(fd)
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return err.WithHint("%q exists, but the ignore file or the filters of the directory leave it out", joinRel(rel, name))
		}
	}
	return err
}

// glob returns the paths that a pattern matches, sorted. The part before the first wildcard may lead through symlinks;
// the rest does not. A directory that matches is not searched further. If the part before the first wildcard does not exist,
// that is diag.NotFound.
func (f *Files) glob(pattern string, follow bool) ([]found, error) {
	parts := strings.Split(strings.TrimPrefix(path.Clean("/"+pattern), "/"), "/")
	n := slices.IndexFunc(parts, graph.HasWildcard)
	base, err := f.find(strings.Join(parts[:n], "/"), follow)
	if err != nil {
		return nil, err
	}
	var out []found
	err = f.globIn(base, parts[n:], &out)
	return out, err
}

func (f *Files) globIn(at found, parts []string, out *[]found) error {
	if at.e.dir == nil {
		return nil
	}
	if err := f.list(at.e.dir); err != nil {
		return err
	}
	for i := range at.e.dir.kids {
		k := &at.e.dir.kids[i]
		ok, err := path.Match(parts[0], k.Name)
		if err != nil {
			return diag.Errorf(diag.Invalid, "invalid pattern %q: %w", parts[0], err)
		}
		if !ok {
			continue
		}
		if err := f.look(at.e.dir, []*Entry{k}); err != nil {
			return err
		}
		if k.gone {
			continue
		}
		kid := found{e: k, parent: at.e.dir, rel: joinRel(at.rel, k.Name)}
		if len(parts) == 1 {
			*out = append(*out, kid)
		} else if err := f.globIn(kid, parts[1:], out); err != nil {
			return err
		}
	}
	return nil
}
