package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// hellofs DIR shows one file, hello, in DIR until it is ended. It needs /dev/fuse, since the test is about that device, but
// shows the file through a tmpfs: no FUSE protocol is spoken.
func hellofs(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: hellofs DIR")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Mount("hellofs", args[0], "tmpfs", 0, "size=64k"); err != nil {
		return &os.PathError{Op: "mount", Path: args[0], Err: err}
	}
	if err := os.WriteFile(filepath.Join(args[0], "hello"), []byte("hello, world\n"), 0o444); err != nil {
		return err
	}
	time.Sleep(time.Hour) // it is ended by a signal
	return nil
}
