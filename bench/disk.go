package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is the file system that everything is measured on.
type disk struct {
	file string
	dir  string // where it is mounted
	fd   int
}

// mountDisk makes a journaled ext4 file system in a sparse file, and mounts it.
func mountDisk(ctx context.Context, dir string, size int64) (*disk, error) {
	d := &disk{file: filepath.Join(dir, "disk.img"), dir: filepath.Join(dir, "disk")}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(d.file)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		// Without lazy initialisation: nothing of it may run while something is measured.
		{"mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.file},
		{"mount", "-o", "loop", d.file, d.dir},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	d.fd, err = unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return d, err
}

// settle writes out what is dirty, so that nobody pays for what others wrote.
func (d *disk) settle() { _ = unix.Syncfs(d.fd) }

func (d *disk) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }

func (d *disk) close() {
	unix.Close(d.fd)
	if err := unix.Unmount(d.dir, 0); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s stays mounted: %v\n", d.dir, err)
		return
	}
	_ = os.Remove(d.file)
}
