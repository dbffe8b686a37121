package main

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// checkWritable finds out before the build what could not be written after it.
func (b *buildFlags) checkWritable(targets map[string]session.OutputTarget) error {
	for _, id := range slices.Sorted(maps.Keys(targets)) {
		t := targets[id]
		if err := errors.Join(writableFile("--output", t.File), writableDir("--output", t.Dir)); err != nil {
			return err
		}
	}
	if err := writableFile("--iidfile", b.iidFile); err != nil {
		return err
	}
	return writableFile("--metadata-file", b.metaFile)
}

// writableFile checks that a file can be written: its directory exists and takes files, and no directory has its name.
func writableFile(flag, path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return diag.Errorf(diag.Invalid, "%s: %s is a directory", flag, path).WithHint("name a file in it")
	case err == nil && !st.Mode().IsRegular():
		return nil // a device or a FIFO is written through
	}
	return writableIn(flag, filepath.Dir(path))
}

// writableDir checks that a directory can be made or filled.
func writableDir(flag, path string) error {
	if path == "" {
		return nil
	}
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			continue // it is made
		}
		return writableIn(flag, dir)
	}
}

func writableIn(flag, dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nearFile(diag.Errorf(diag.NotFound, "%s: the directory %q does not exist", flag, dir), dir)
	case err != nil:
		return diag.Errorf(diag.Invalid, "%s: %w", flag, err)
	case !st.IsDir():
		return diag.Errorf(diag.Invalid, "%s: %q is not a directory", flag, dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return diag.Errorf(diag.Denied, "%s: the directory %q cannot be written: %w", flag, dir, err)
	}
	return nil
}
