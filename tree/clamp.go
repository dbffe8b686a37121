package tree

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Clamp makes nothing below dir, a draft's directory, newer than a time. A file that other layers share is copied first: its
// time is theirs too. Names of one file stay names of one file.
func Clamp(dir string, limit time.Time) error {
	ts := unix.NsecToTimespec(limit.UnixNano())
	q := &squash{}
	moved := map[inode]string{} // files that were copied -> a name of the copy
	type stamp struct {
		path string
		ts   unix.Timespec
	}
	var dirs []stamp // their time changes while what is in them does
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: p, Err: err}
		}
		late := nanos(st.Mtim) > limit.UnixNano()
		if e.IsDir() {
			d := stamp{p, st.Mtim}
			if late {
				d.ts = ts
			}
			dirs = append(dirs, d)
			return nil
		}
		if !late {
			return nil
		}
		key := inode{dev: st.Dev, ino: st.Ino}
		first := moved[key] // its last name has a link count of 1
		if st.Nlink > 1 || first != "" {
			if first == "" {
				moved[key] = p
			}
			if err := q.replace(filepath.Dir(dir)+"/clamp", first, &source{host: p, st: st}); err != nil || first != "" {
				return err
			}
		}
		return setMtime(p, ts)
	})
	for _, d := range dirs {
		if err == nil {
			err = setMtime(d.path, d.ts)
		}
	}
	return err
}

// replace puts a copy of a file, made at tmp, in its place, or another name of the copy that was made before.
func (q *squash) replace(tmp, first string, src *source) error {
	var err error
	if first != "" {
		err = unix.Link(first, tmp)
	} else {
		err = q.copy(tmp, src)
	}
	if err == nil {
		err = unix.Rename(tmp, src.host)
	}
	return err
}

func setMtime(p string, ts unix.Timespec) error {
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimes", Path: p, Err: err}
	}
	return nil
}
