// Package faultdisk makes disks that fail on purpose, for tests. A disk is one file of a FUSE file system that this process
// serves; a loop device on it carries a real file system, which so meets the errors where a broken disk makes them: when the
// kernel writes pages back. The disk has a volatile write cache, as real ones do: [Disk.PowerCut] forgets what was not flushed.
//
//	d := faultdisk.New(t, 256<<20, "ext4")
//	d.FailWrites(3)        // the next three writes fail with EIO
//	d.PowerCut(nil)        // unmounts, forgets what was not flushed
//	d.Mount()              // the same disk again
package faultdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const sector = 4096

// Disk is a disk with a file system that is mounted at Dir.
type Disk struct {
	Dir string

	t      testing.TB
	fuse   string // where the FUSE file system is mounted
	server *fuse.Server
	loop   string // the loop device, while there is one
	image  *image
}

// image is the disk's one file.
type image struct {
	fs.Inode

	mu      sync.Mutex
	stable  []byte           // what survives a power cut
	cached  map[int64][]byte // sectors that were written since the last flush
	size    int64
	fail    int    // writes that still fail ...
	text    []byte // ... of those that hold this
	after   int    // writes that succeed before
	dead    bool   // everything fails
	failed  int    // writes that have failed
	written int64
}

var (
	_ fs.NodeOpener    = (*image)(nil)
	_ fs.NodeReader    = (*image)(nil)
	_ fs.NodeWriter    = (*image)(nil)
	_ fs.NodeFsyncer   = (*image)(nil)
	_ fs.NodeGetattrer = (*image)(nil)
	_ fs.NodeSetattrer = (*image)(nil)
)

// New makes a disk of size bytes with a file system (ext4, xfs or btrfs) and mounts it. options are for mkfs. It skips the test
// where that is not possible, and takes everything apart at the test's end.
func New(t testing.TB, size int64, fstype string, options ...string) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range []string{"losetup", "mkfs." + fstype} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	d := &Disk{t: t, fuse: filepath.Join(dir, "fuse"), Dir: filepath.Join(dir, "mnt"), image: &image{size: size, stable: make([]byte, size), cached: map[int64][]byte{}}}
	for _, p := range []string{d.fuse, d.Dir} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := &fs.Inode{}
	server, err := fs.Mount(d.fuse, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultdisk", DisableXAttrs: true, MaxWrite: 128 << 10},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d.image, fs.StableAttr{Mode: fuse.S_IFREG}), true)
		},
	})
	if err != nil {
		t.Skip("no FUSE: ", err)
	}
	d.server = server
	t.Cleanup(d.close)
	d.attach()
	options = append(options, d.loop)
	d.command("mkfs."+fstype, append(map[string][]string{"ext4": {"-q", "-m", "0"}, "xfs": {"-q"}, "btrfs": {"-q"}}[fstype], options...)...)
	d.detach()
	d.Mount()
	return d
}

func (d *Disk) command(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (d *Disk) attach() {
	d.t.Helper()
	d.loop = d.command("losetup", "--find", "--show", "--direct-io=on", filepath.Join(d.fuse, "disk"))
}

func (d *Disk) detach() {
	if d.loop != "" {
		if out, err := exec.Command("losetup", "--detach", d.loop).CombinedOutput(); err != nil {
			d.t.Errorf("losetup: %s", out)
		}
		d.loop = ""
	}
}

// Mount mounts the disk at Dir, with more options for mount(8).
func (d *Disk) Mount(options ...string) {
	d.t.Helper()
	if d.loop == "" {
		d.attach()
	}
	args := []string{d.loop, d.Dir}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	d.command("mount", args...)
}

// Check repairs an ext4 file system that is not mounted, as a machine does when it starts. It reports whether that was not enough:
// the file system itself has lost something that had been flushed, as when a write of its metadata has failed.
func (d *Disk) Check() (lost bool) {
	d.t.Helper()
	d.attach()
	// Its exit status has bit 1 if it has repaired something, and bit 4 if errors are left.
	err := exec.Command("e2fsck", "-p", d.loop).Run()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err == nil || ok && exit.ExitCode() <= 1 {
		return false
	}
	if out, err := exec.Command("e2fsck", "-y", d.loop).CombinedOutput(); err != nil {
		d.t.Logf("e2fsck: %v: %s", err, out)
	}
	return true
}

// Sync writes the file system's caches to the disk.
func (d *Disk) Sync() {
	d.t.Helper()
	dir, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		d.t.Fatal("syncfs: ", err)
	}
}

// Remount changes the options of the mounted file system, such as "ro".
func (d *Disk) Remount(options string) error {
	out, err := exec.Command("mount", "-o", "remount,"+options, d.Dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// FailWrites lets the next n writes that reach the disk fail with EIO.
func (d *Disk) FailWrites(n int) { d.FailWritesAfter(0, n) }

// FailWritesOf lets the next n writes fail that hold a text, and so are data and not the file system's journal, whose failure
// makes the file system read-only.
func (d *Disk) FailWritesOf(text string, n int) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	d.image.after, d.image.fail, d.image.text = 0, n, []byte(text)
}

// FailWritesAfter lets n writes fail after some have succeeded.
func (d *Disk) FailWritesAfter(good, n int) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	d.image.after, d.image.fail, d.image.text = good, n, nil
}

// Failed returns how many writes have failed so far.
func (d *Disk) Failed() int {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	return d.image.failed
}

// PowerCut is Cut and Unmount.
func (d *Disk) PowerCut(random *rand.Rand) {
	d.t.Helper()
	d.Cut(random)
	d.Unmount()
}

// Cut takes the power away: what the disk has not flushed is lost, except for sectors that random keeps, since a disk may
// write its cache in any order. All reads and writes fail until the file system is unmounted.
func (d *Disk) Cut(random *rand.Rand) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	for at, b := range d.image.cached {
		if random != nil && random.IntN(2) == 0 {
			copy(d.image.stable[at:], b)
		}
	}
	d.image.cached = map[int64][]byte{}
	d.image.dead = true
}

// unmountTries bounds how often Unmount tries, with a pause of 20 ms: processes that were killed give their files back late.
const unmountTries = 1000

// Unmount unmounts the file system, and what is mounted below it, and ends all faults. No process may use it any more.
func (d *Disk) Unmount() {
	d.t.Helper()
	var err error
	for range unmountTries {
		if err = d.unmountAll(); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		d.t.Fatal("unmount: ", err)
	}
	d.detach()
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	d.image.dead, d.image.fail, d.image.after = false, 0, 0
}

func (d *Disk) unmountAll() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	for _, line := range slices.Backward(lines) { // the later ones are on top
		at := strings.Fields(line)[4]
		if at != d.Dir && !strings.HasPrefix(at, d.Dir+"/") {
			continue
		}
		if err := unix.Unmount(at, 0); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

// DropCaches makes the kernel forget clean pages, so that files are read from the disk again.
func (d *Disk) DropCaches() {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) close() {
	d.image.mu.Lock()
	d.image.dead, d.image.fail = false, 0
	d.image.mu.Unlock()
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && bytes.Contains(mounts, []byte(" "+d.Dir+" ")) {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			d.t.Errorf("unmount: %v", err)
		}
	}
	d.detach()
	if err := d.server.Unmount(); err != nil {
		d.t.Errorf("unmount FUSE: %v", err)
		_ = unix.Unmount(d.fuse, unix.MNT_DETACH)
	}
}

// Open implements fs.NodeOpener.
func (f *image) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Getattr implements fs.NodeGetattrer.
func (f *image) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = fuse.S_IFREG|0o600, uint64(f.size), sector
	return 0
}

// Setattr implements fs.NodeSetattrer.
func (f *image) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

// Read implements fs.NodeReader.
func (f *image) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return nil, syscall.EIO
	}
	n := max(0, min(int64(len(dest)), f.size-off))
	dest = dest[:n]
	copy(dest, f.stable[off:])
	for at := off / sector * sector; at < off+n; at += sector {
		if b := f.cached[at]; b != nil {
			from := max(at, off)
			copy(dest[from-off:], b[from-at:])
		}
	}
	return fuse.ReadResultData(dest), 0
}

// Write implements fs.NodeWriter.
func (f *image) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		f.after--
	} else if f.fail > 0 && bytes.Contains(data, f.text) {
		f.fail--
		f.failed++
		return 0, syscall.EIO
	}
	if f.dead || off+int64(len(data)) > f.size {
		return 0, syscall.EIO
	}
	for n := int64(0); n < int64(len(data)); {
		at := (off + n) / sector * sector
		b := f.cached[at]
		if b == nil {
			b = bytes.Clone(f.stable[at:min(at+sector, f.size)])
			f.cached[at] = b
		}
		n += int64(copy(b[off+n-at:], data[n:]))
	}
	f.written += int64(len(data))
	return uint32(len(data)), 0
}

// Fsync implements fs.NodeFsyncer.
func (f *image) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return syscall.EIO
	}
	for at, b := range f.cached {
		copy(f.stable[at:], b)
	}
	f.cached = map[int64][]byte{}
	return 0
}
