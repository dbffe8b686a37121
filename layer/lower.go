package layer

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// lower looks paths up in a stack of layer directories, bottom first, as overlayfs would show it. Nothing is mounted.
type lower []string

// lookup returns the topmost layer's file at the clean path p: its path on the host and its attributes. Symlinks are not
// followed, neither the last name nor on the way.
func (l lower) lookup(p string) (host string, st unix.Stat_t, ok bool) {
	dirs := slices.Clone(l)
	slices.Reverse(dirs) // top first
	for i := range dirs {
		if i+1 < len(dirs) && opaqueAt(dirs[i]) {
			dirs = dirs[:i+1]
			break
		}
	}
	if p == "." {
		if len(dirs) == 0 {
			return "", st, false
		}
		err := unix.Lstat(dirs[0], &st)
		return dirs[0], st, err == nil
	}
	rest := p
	for {
		name, more, deeper := strings.Cut(rest, "/")
		next := dirs[:0:0]
		found := false
		for _, d := range dirs {
			at := filepath.Join(d, name)
			var s unix.Stat_t
			if unix.Lstat(at, &s) != nil {
				continue
			}
			if !found {
				found, host, st = true, at, s
			}
			if s.Mode&unix.S_IFMT != unix.S_IFDIR {
				break // a whiteout or a file hides what is below it
			}
			next = append(next, at)
			if opaqueAt(at) {
				break
			}
		}
		if !found || isWhiteout(&st) {
			return "", st, false
		}
		if !deeper {
			return host, st, true
		}
		if len(next) == 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return "", st, false
		}
		dirs, rest = next, more
	}
}

// names lists the root, sorted.
func (l lower) names() ([]string, error) {
	set := map[string]struct{}{}
	for _, d := range slices.Backward(l) {
		fd, err := unix.Open(d, openDirMode&^unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, sysError("open", d, err)
		}
		names, err := readNames(fd)
		unix.Close(fd)
		if err != nil {
			return nil, sysError("list", d, err)
		}
		for _, n := range names {
			set[n] = struct{}{}
		}
		if opaqueAt(d) {
			break
		}
	}
	var out []string
	for n := range set {
		if _, _, ok := l.lookup(n); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func opaqueAt(path string) bool {
	var b [2]byte
	for _, name := range []string{xattrOpaque, xattrUserOpaque} {
		if n, err := unix.Lgetxattr(path, name, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}
