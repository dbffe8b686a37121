package faultdisk

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDiskFailsAsAskedFor(t *testing.T) {
	d := New(t, 64<<20, "ext4")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sync := func() error {
		f, err := os.Open(d.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return unix.Syncfs(int(f.Fd()))
	}
	write("durable", "durable")
	if err := sync(); err != nil {
		t.Fatal(err)
	}
	write("volatile", "volatile")
	d.PowerCut(nil)
	d.Mount()
	if b, err := os.ReadFile(filepath.Join(d.Dir, "durable")); string(b) != "durable" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(d.Dir, "volatile")); string(b) == "volatile" {
		t.Errorf("what nobody flushed survived: %v", err)
	}
	f, err := os.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write("damaged", "damaged")
	d.FailWrites(1)
	if err := unix.Syncfs(int(f.Fd())); !errors.Is(err, syscall.EIO) || d.Failed() != 1 {
		t.Errorf("%v; %d writes failed", err, d.Failed())
	}
}
