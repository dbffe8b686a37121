package store

import (
	"bufio"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// sweep clears what an owner that did not end well left behind. Mounts and temporary files are put out of the way before
// it returns; the rest happens in the background.
func (s *Store) sweep() error {
	if err := unmountBelow(s.root); err != nil {
		return s.fail("cannot unmount what an earlier builder left", err)
	}
	old := s.path(fmt.Sprintf("%s%x", oldTemp, time.Now().UnixNano()))
	if err := os.Rename(s.path("tmp"), old); err != nil && !os.IsNotExist(err) {
		return s.fail("cannot clear the temporary files", err)
	}
	if err := os.MkdirAll(s.path("tmp"), 0o700); err != nil {
		return s.fail("cannot make the directory for temporary files", err)
	}
	olds, _ := filepath.Glob(s.path(oldTemp + "*"))
	for _, o := range olds {
		s.trash.add(o)
	}
	s.swept = make(chan struct{})
	s.background(func() {
		defer close(s.swept)
		s.sweepLayers()
		s.sweepBlobs()
		if err := s.forgetDeleted(); err != nil {
			s.log.Warn("cannot clear the records of what was deleted", "cause", err)
		}
		if s.ctx.Err() != nil {
			s.untidy.Store(true) // not done
		}
	})
	return nil
}

// oldTemp is the start of the names that directories of temporary files get when they are given up.
const oldTemp = "tmp.old-"

// unmountBelow detaches what is mounted two or more levels below the root. (A level less could be the work of whoever runs
// the machine: a disk of its own for the layers.)
func unmountBelow(root string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil // no proc, no mounts of ours
	}
	defer f.Close()
	var found []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if rel, ok := strings.CutPrefix(at, root+"/"); ok && strings.Contains(rel, "/") {
			found = append(found, at)
		}
	}
	slices.SortStableFunc(found, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, at := range found {
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return nil
}

// unescape undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescape(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] == '\\' && i+3 < len(p) {
			if v, err := strconv.ParseUint(p[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// sweepLayers deletes the directories of layers that no record names: drafts of a dead owner, and what a power cut took
// the records of.
func (s *Store) sweepLayers() {
	entries, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		s.log.Warn("cannot look for abandoned layers", "cause", err)
		return
	}
	n := 0
	for _, e := range entries {
		if s.ctx.Err() != nil {
			return
		}
		if s.abandoned(e.Name()) {
			n++
		}
	}
	if n > 0 {
		s.log.Info("abandoned layers are being deleted", "count", n)
	}
}

func (s *Store) abandoned(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v, err := strconv.ParseUint(name, 10, 64); err == nil {
		if _, ok := s.drafts[LayerID(v)]; ok {
			return false
		}
		if b, err := s.value(layerKey(LayerID(v))); b != nil || err != nil && err != errDamaged {
			return false
		}
	}
	s.trash.put(s.path("snapshots", name))
	return true
}

// forgetDeleted drops the records of layers and blobs whose files are gone, and the results and chains that name such layers. A
// power cut soon after a collection leaves them: the files are deleted at once, the records some time later. Images that lack
// something stay, for Check to report.
func (s *Store) forgetDeleted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	b := &Batch{s: s}
	gone := map[LayerID]bool{}
	err := s.each(kindLayer, func(name string, _ uint64, _ []byte, err error) {
		key := keyOf(kindLayer, name)
		if id, ok := layerOf(key); ok && err == nil && missing(s.LayerDir(id)) {
			gone[id] = true
			b.drop(key)
		}
	})
	if err == nil {
		err = s.each(kindBlob, func(name string, _ uint64, _ []byte, err error) {
			if d := graph.Digest(name); err == nil && d.Validate() == nil && missing(s.blobPath(d)) {
				b.drop(keyOf(kindBlob, name))
			}
		})
	}
	if err == nil && len(gone) > 0 {
		err = s.each(kindResult, func(name string, _ uint64, p []byte, err error) {
			r, derr := decodeResult(p)
			for _, stack := range r.Outputs {
				if err == nil && derr == nil && slices.ContainsFunc(stack, func(id LayerID) bool { return gone[id] }) {
					b.DropResult(graph.Digest(name))
					return
				}
			}
		})
	}
	if err != nil || len(b.changes) == 0 {
		return err
	}
	s.log.Info("records of deleted files were dropped", "count", len(b.changes))
	err = s.commit(b)
	s.presence.clear()
	return err
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return os.IsNotExist(err)
}

// sweepBlobs hashes the blob files that no record vouches for and keeps the good ones, and deletes partial blobs that
// nobody can resume.
func (s *Store) sweepBlobs() {
	partial, _ := filepath.Glob(s.path("ingest", unnamed+"*"))
	for _, p := range partial {
		if fi, err := os.Lstat(p); err == nil && fi.ModTime().Before(s.opened) {
			os.Remove(p)
		}
	}
	_ = filepath.WalkDir(s.path("blobs"), func(path string, e fs.DirEntry, err error) error {
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if err != nil || e.IsDir() {
			return nil
		}
		d := graph.Digest(filepath.Base(filepath.Dir(path)) + ":" + e.Name())
		if d.Validate() != nil {
			s.trash.put(path)
			return nil
		}
		s.HasBlob(d)
		return nil
	})
}

// trash deletes directories in the background.
type trash struct {
	s       *Store
	mu      sync.Mutex
	queue   []string
	workers int
	idle    chan struct{} // closed when there are no workers; nil if there never were any
	stopped bool
	prefix  string
	n       int
}

// trashWorkers is enough to keep a disk busy and leaves processors for the build.
const trashWorkers = 2

func (t *trash) start(s *Store) {
	t.s, t.prefix = s, s.path("tmp", fmt.Sprintf("trash-%x-", time.Now().UnixNano()))
}

// put moves a file or directory out of sight, at once, and deletes it in the background.
func (t *trash) put(path string) {
	t.mu.Lock()
	t.n++
	to := t.prefix + strconv.Itoa(t.n)
	t.mu.Unlock()
	if err := os.Rename(path, to); err != nil {
		if !os.IsNotExist(err) {
			t.s.untidy.Store(true)
			t.s.log.Warn("cannot delete", "path", path, "cause", err)
		}
		return
	}
	t.add(to)
}

// add deletes in the background what is out of sight already.
func (t *trash) add(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, path)
	if t.stopped || t.workers >= trashWorkers {
		return
	}
	if t.workers == 0 {
		t.idle = make(chan struct{})
	}
	t.workers++
	go t.work()
}

func (t *trash) work() {
	for {
		t.mu.Lock()
		if len(t.queue) == 0 || t.stopped {
			if t.workers--; t.workers == 0 {
				close(t.idle)
			}
			t.mu.Unlock()
			return
		}
		path := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		if err := removeAll(path); err != nil {
			t.s.untidy.Store(true)
			t.s.log.Warn("cannot delete", "path", path, "cause", err)
		}
	}
}

// removeAll deletes a tree. As other users than root, directories without permission are opened up first.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !os.IsPermission(err) {
		return err
	}
	_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}

// wait returns when all that was put so far is deleted, or when done is closed.
func (t *trash) wait(done <-chan struct{}) {
	t.mu.Lock()
	idle := t.idle
	t.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-done:
	}
}

// stop ends the workers after what they are deleting now, for which it waits a moment. It reports whether all is deleted.
func (t *trash) stop() bool {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	done := make(chan struct{})
	timer := time.AfterFunc(100*time.Millisecond, func() { close(done) })
	defer timer.Stop()
	t.wait(done)
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue) == 0 && t.workers == 0
}
