package tree

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// DropRedundant removes from a draft the directories that say nothing: overlayfs copies a directory up when something is made in
// it, and it stays, empty and as it is below, when that is removed again. Empty are the draft's directories without entries, as
// paths in it; those that they were alone in are looked at too. It returns how many it has removed.
func (t *Stack) DropRedundant(draft string, empty []string) (n int, err error) {
	below := t.dirs()
	for _, rel := range empty {
		for ; rel != "."; rel = path.Dir(rel) {
			gone, err := dropRedundant(below, draft, rel)
			if err != nil {
				return n, err
			}
			if !gone {
				break
			}
			n++
		}
	}
	return n, nil
}

func dropRedundant(below []string, draft, rel string) (bool, error) {
	host, dir := path.Join(draft, rel), path.Dir(path.Join(draft, rel))
	var st, parent unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: host, Err: err}
	}
	if opaque, err := isOpaque(host); err != nil || opaque || len(listAttrs(host)) > 0 || !sameBelow(below, rel, &st) {
		return false, nil // if in doubt it stays
	}
	if err := unix.Lstat(dir, &parent); err != nil {
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if err := unix.Rmdir(host); err == unix.ENOTEMPTY {
		return false, nil
	} else if err != nil {
		return false, &os.PathError{Op: "rmdir", Path: host, Err: err}
	}
	if err := setTimes(unix.AT_FDCWD, dir, nanos(parent.Mtim)); err != nil {
		return true, &os.PathError{Op: "utimes", Path: dir, Err: err}
	}
	return true, nil
}

// sameBelow reports whether the first of some layers, top first, that has anything at a path has a directory with the same
// owner, mode and time there, and no attributes.
func sameBelow(layers []string, rel string, want *unix.Stat_t) bool {
	for _, l := range layers {
		var st unix.Stat_t
		at, hidden := l, false
		found := true
		for name := range strings.SplitSeq(rel, "/") {
			at += "/" + name
			if err := unix.Lstat(at, &st); missing(err) {
				found = false
				break
			} else if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return false
			}
			if opaque, err := isOpaque(at); err != nil {
				return false
			} else if opaque {
				hidden = true
			}
		}
		if found {
			return st.Mode == want.Mode && st.Uid == want.Uid && st.Gid == want.Gid && st.Mtim == want.Mtim && len(listAttrs(at)) == 0
		}
		if hidden {
			return false
		}
	}
	return false
}
