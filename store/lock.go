package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// formatVersion is the version of a root's layout and of its records. Another version is refused, never converted in place.
const formatVersion = "1"

// takeLock makes this process the root's owner until the file is closed. It returns what the last owner left in the file:
// nothing if it ended well, otherwise there may be something to sweep. A lock whose owner died is free: the kernel drops
// it with the process.
func (s *Store) takeLock() (left string, err error) {
	f, err := os.OpenFile(filepath.Join(s.root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", s.fail("cannot open the lock", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return "", s.fail("cannot lock "+s.root, err)
		}
		held := s.owner(f)
		return "", diag.Errorf(diag.Conflict, "%w", held).WithHint("wait until it has ended, or choose another root")
	}
	old := make([]byte, 64)
	n, _ := f.ReadAt(old, 0)
	s.lock = f
	word := ""
	if s.opt.Serves {
		word = serving
	}
	if err := s.sign(word); err != nil {
		return "", s.fail("cannot write the lock", err)
	}
	return string(old[:n]), nil
}

// Words that follow the owner's number in the lock.
const (
	serving = "serves"
	leaving = "leaves"
)

// sign writes this process's number and a word into the lock.
func (s *Store) sign(word string) error {
	s.word.Store(word)
	return s.writeLock(strings.TrimSpace(strconv.Itoa(os.Getpid())+" "+word) + "\n")
}

// owner reads who holds the lock. A new owner signs just after it got the lock, so an empty file is read again.
func (s *Store) owner(f *os.File) *LockedError {
	held := &LockedError{Root: s.root}
	b := make([]byte, 64)
	for range 5 {
		n, _ := f.ReadAt(b, 0)
		line, _, _ := strings.Cut(string(b[:n]), "\n")
		who, word, _ := strings.Cut(line, " ")
		pid, err := strconv.Atoi(who)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		held.PID, held.Serves = pid, word == serving
		held.Leaving = word == leaving || ended(pid)
		return held
	}
	held.Leaving = true // it comes or goes
	return held
}

// ended reports whether a process is gone, or its first thread is. The lock may be held a moment longer then: by other threads
// that are ending too, or by a child that was just being started.
func ended(pid int) bool {
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ") // the name before may hold anything, but ends there
	return err == nil && (strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X"))
}

// Leave says in the lock that this owner takes no more work and is about to close the store, so that the next one waits
// for it. Close says so itself.
func (s *Store) Leave() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return
	}
	if err := s.sign(leaving); err != nil {
		s.log.Warn("cannot write the lock", "cause", err)
	}
}

// writeLock replaces what the lock says. It writes first and cuts then, so that nobody finds it empty in between.
func (s *Store) writeLock(text string) error {
	if _, err := s.lock.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return s.lock.Truncate(int64(len(text)))
}

// layout makes what a root consists of, unless it is there. It reports whether the root is new.
func (s *Store) layout() (fresh bool, err error) {
	name := filepath.Join(s.root, "version")
	b, err := os.ReadFile(name)
	empty := err == nil && strings.TrimSpace(string(b)) == "" // a power cut soon after the root was made
	if err == nil && !empty {
		if v := strings.TrimSpace(string(b)); v != formatVersion {
			return false, diag.Errorf(diag.Conflict, "the state in %s has format %q, and this program knows format %s", s.root, v, formatVersion).
				WithHint("use the program that made it, or choose another root, or delete this one")
		}
		return false, s.makeDirs() // one that somebody has removed is made again
	}
	if !empty && !errors.Is(err, os.ErrNotExist) {
		return false, s.fail("cannot read the version of "+s.root, err)
	}
	// Layers hold other people's setuid programs: nobody else may reach them.
	if err := os.Chmod(s.root, 0o700); err != nil {
		return false, s.fail("cannot make "+s.root, err)
	}
	if err := s.makeDirs(); err != nil {
		return false, err
	}
	for _, f := range []struct{ name, text string }{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
		{"index.json", emptyIndex},
		{"version", formatVersion + "\n"}, // last: its presence says that the rest is there
	} {
		if err := writeDurably(filepath.Join(s.root, "tmp", f.name), filepath.Join(s.root, f.name), f.text); err != nil {
			return false, s.fail("cannot make "+s.root, err)
		}
	}
	return !empty, nil
}

// emptyIndex is the index.json of a root without images.
const emptyIndex = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

// makeDirs makes the directories of a root that are not there.
func (s *Store) makeDirs() error {
	for _, d := range []string{"blobs/sha256", "snapshots", "ingest", "mounts", "tmp", "index"} {
		if err := os.MkdirAll(filepath.Join(s.root, d), 0o700); err != nil {
			return s.fail("cannot make "+s.root, err)
		}
	}
	return nil
}

// writeDurably writes a small file by way of tmp. After a power cut it is there as a whole, or not at all.
func writeDurably(tmp, name, text string) error {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// incarnation names the time since the root's file system came up: what was written in it is in the page cache or on the
// disk, even if nobody synced. It is the kernel's boot id and, where sysfs tells it, the number of the file system's own
// mount (the inode of its kobject, which is new each time the device is mounted, but is the same in every mount namespace).
func incarnation(root string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // equal to nothing, not even to itself
	}
	id := strings.TrimSpace(string(boot))
	var st unix.Stat_t
	if unix.Stat(root, &st) != nil {
		return id
	}
	dev, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return id
	}
	for _, fs := range []string{"ext4", "xfs", "f2fs"} {
		if fi, err := os.Stat(filepath.Join("/sys/fs", fs, filepath.Base(dev))); err == nil {
			return id + "/" + strconv.FormatUint(fi.Sys().(*syscall.Stat_t).Ino, 10)
		}
	}
	return id
}
