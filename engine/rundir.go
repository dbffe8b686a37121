package engine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// rootFile is the file of a run-time directory that names the root whose state it is.
const rootFile = "root"

// goneAge is how old the run-time state of a root that does not exist must be before it is removed: the root of an engine that
// starts at this moment may not exist yet.
const goneAge = time.Minute

// maxSwept bounds the run-time directories that one engine looks at when it starts.
const maxSwept = 1000

var runID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// claimRunDir makes a run-time directory, if it is not there, and notes whose state it has. The caller owns the root.
func claimRunDir(dir, root string) error {
	root, err := realRoot(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	path := filepath.Join(dir, rootFile)
	if old, err := os.ReadFile(path); err == nil && string(old) == root {
		return nil
	}
	return os.WriteFile(path, []byte(root), 0o600)
}

// dropRunDir removes a run-time directory that has nothing. The caller owns the root.
func dropRunDir(dir string) {
	left, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range left {
		if e.Name() != rootFile && (!e.IsDir() || os.Remove(filepath.Join(dir, e.Name())) != nil) {
			return // a step's, or of plugins
		}
	}
	_ = os.Remove(filepath.Join(dir, rootFile))
	_ = os.Remove(dir)
}

// sweepRunDirs removes the run-time state of roots that no longer exist: no engine will ever come for it. State on which
// something is mounted stays.
func sweepRunDirs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	entries = entries[:min(len(entries), maxSwept)]
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		fi, ierr := e.Info()
		if ierr != nil || !e.IsDir() || !runID.MatchString(e.Name()) || time.Since(fi.ModTime()) < goneAge {
			continue
		}
		root, rerr := os.ReadFile(filepath.Join(path, rootFile))
		if rerr != nil || !filepath.IsAbs(string(root)) {
			continue
		}
		if _, lerr := os.Lstat(string(root)); !errors.Is(lerr, fs.ErrNotExist) || bytes.Contains(mounts, []byte(" "+path+"/")) {
			continue
		}
		err = errors.Join(err, os.RemoveAll(path))
		if rerr := os.Remove(path + ".sock"); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
