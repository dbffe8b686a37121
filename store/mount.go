package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// mountRecord is what is known of a directory below mounts/.
type mountRecord struct {
	Key     string
	Created time.Time
	Size    int64 // bytes on disk, when last measured
}

// mounts says who uses which cache mount. A key has copy 0, and further ones if it is used privately.
type mounts struct {
	mu     sync.Mutex
	leases map[string]*lease // by directory name
	freed  chan struct{}     // closed at the next release; nil if nobody waits

	measured map[string]time.Time // when a mount was last measured, in this process
	dirty    map[string]bool      // used since
	unsynced map[string]bool      // used since the last good sync began
}

type lease struct {
	users     int
	exclusive bool
	aside     string     // where the directory went after a failed sync; "" = it is in its place
	making    sync.Mutex // held while the directory is made
}

// CacheMount returns a directory that keeps its content from build to build. With graph.SharingLocked it waits until
// nobody else has it; with SharingPrivate the caller gets a copy that nobody uses, an empty one if need be; with
// SharingShared (or "") several have it at once. init, if not nil, is called with the path of a new directory (mode 0755)
// before anybody sees it. refill, if not nil, is called with one that takes the place of a directory that is empty and that nobody
// else has, unless it returns false. The directory is kept until release, which may be called more than once; afterwards it may be
// collected.
func (s *Store) CacheMount(ctx context.Context, key string, sharing graph.Sharing, init func(dir string) error, refill func(dir string) (bool, error)) (dir string, release func(), err error) {
	switch sharing {
	case "", graph.SharingShared, graph.SharingLocked, graph.SharingPrivate:
	default:
		return "", nil, diag.Errorf(diag.Invalid, "unknown sharing %q of a cache mount", sharing)
	}
	name, l, err := s.mounts.lease(ctx, key, sharing)
	if err != nil {
		return "", nil, s.fail("gave up waiting for a cache mount", err)
	}
	release = sync.OnceFunc(func() {
		s.touch(keyOf(kindMount, name))
		s.endLease(name, l)
		kick(s.tendWake)
	})
	dir = s.path("mounts", name)
	if err := s.makeMount(name, key, l, fillers{init, refill}); err != nil {
		release()
		return "", nil, err
	}
	s.touch(keyOf(kindMount, name))
	return dir, release, nil
}

func (s *Store) endLease(name string, l *lease) {
	if aside := s.mounts.unlease(name, l); aside != "" {
		s.trash.put(aside)
	}
}

// ReadCacheMount lets read see the directory of a cache mount, if there is one. Steps that lock it, or want it for
// themselves, and the reading wait for each other; those that share it may change it meanwhile.
func (s *Store) ReadCacheMount(ctx context.Context, key string, sharing graph.Sharing, read func(dir string) error) (ok bool, err error) {
	if sharing == graph.SharingPrivate {
		sharing = graph.SharingLocked // the first copy, not one that nobody uses
	}
	name, l, err := s.mounts.lease(ctx, key, sharing)
	if err != nil {
		return false, s.fail("gave up waiting for a cache mount", err)
	}
	defer s.endLease(name, l)
	dir := s.path("mounts", name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, read(dir)
}

// DropCacheMount lets the cache mounts of a key begin anew. Copies that somebody uses stay as they are.
func (s *Store) DropCacheMount(key string) error {
	tmp, cleanup, err := s.TempDir("mount")
	if err != nil {
		return err
	}
	defer cleanup()
	s.mounts.mu.Lock()
	defer s.mounts.mu.Unlock()
	for n := 0; ; n++ {
		name := mountName(key, n)
		if s.mounts.leases[name] != nil {
			continue
		}
		err := os.Rename(s.path("mounts", name), filepath.Join(tmp, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return s.fail("cannot empty a cache mount", err)
		}
	}
}

// mountName returns the directory's name for copy n of a key.
func mountName(key string, n int) string {
	sum := sha256.Sum256([]byte(key))
	name := hex.EncodeToString(sum[:])
	if n > 0 {
		name += "-" + strconv.Itoa(n)
	}
	return name
}

func (m *mounts) lease(ctx context.Context, key string, sharing graph.Sharing) (string, *lease, error) {
	for {
		name, l, freed := m.tryLease(key, sharing)
		if l != nil {
			return name, l, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
}

// tryLease returns a channel to wait for if there is nothing to be had now.
func (m *mounts) tryLease(key string, sharing graph.Sharing) (string, *lease, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leases == nil {
		m.leases = map[string]*lease{}
	}
	for n := 0; ; n++ {
		name := mountName(key, n)
		l := m.leases[name]
		if l == nil {
			l = &lease{}
			m.leases[name] = l
		}
		if m.unsynced == nil {
			m.unsynced = map[string]bool{}
		}
		m.unsynced[name] = true
		if l.users == 0 || sharing != graph.SharingLocked && sharing != graph.SharingPrivate && !l.exclusive {
			l.users++
			l.exclusive = sharing == graph.SharingLocked || sharing == graph.SharingPrivate
			return name, l, nil
		}
		if sharing != graph.SharingPrivate {
			if m.freed == nil {
				m.freed = make(chan struct{})
			}
			return "", nil, m.freed
		}
	}
}

// unlease returns a directory that is to be deleted, or "".
func (m *mounts) unlease(name string, l *lease) (aside string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.users--; l.users == 0 && l.aside != "" {
		aside = l.aside
	} else if l.users == 0 {
		delete(m.leases, name)
		if m.dirty == nil {
			m.dirty = map[string]bool{}
		}
		m.dirty[name] = true
	}
	if m.freed != nil {
		close(m.freed)
		m.freed = nil
	}
	return aside
}

// syncing begins the list of cache mounts anew that a failed sync casts doubt on: those in use stay on it.
func (m *mounts) syncing() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsynced = map[string]bool{}
	for name := range m.leases {
		m.unsynced[name] = true
	}
}

// distrust lets the cache mounts begin anew that were written to before a sync failed. Steps keep the directories that they
// have, but nobody gets these after them.
func (m *mounts) distrust(s *Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.unsynced {
		dir, l := s.path("mounts", name), m.leases[name]
		if l == nil {
			s.trash.put(dir)
			continue
		}
		delete(m.leases, name)
		l.aside = s.path("tmp", "mount-"+strconv.FormatUint(s.failures.epoch.Load(), 10)+"-"+name)
		if err := os.Rename(dir, l.aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("a cache mount may be damaged", "path", dir, "cause", err)
		}
	}
	m.unsynced = nil
}

// fillers are the functions that CacheMount is called with.
type fillers struct {
	init   func(dir string) error
	refill func(dir string) (bool, error)
}

func (s *Store) makeMount(name, key string, l *lease, f fillers) error {
	l.making.Lock()
	defer l.making.Unlock()
	dir := s.path("mounts", name)
	for {
		_, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			err = s.fillMount(dir, f.init)
		} else if err == nil && f.refill != nil && s.mounts.alone(l) {
			err = s.refillMount(dir, f.refill)
		}
		if err != nil {
			return s.fail("cannot make a cache mount", err)
		}
		// A collection that did not know of the lease may just have taken the directory.
		s.mu.Lock()
		if _, err := os.Lstat(dir); err == nil {
			defer s.mu.Unlock()
			if v, err := s.value(keyOf(kindMount, name)); err == nil && v != nil {
				return nil
			}
			return s.putMount(name, mountRecord{Key: key, Created: time.Now()})
		}
		s.mu.Unlock()
	}
}

// fillMount makes the directory elsewhere, so that a crash leaves none that is half initialised.
func (s *Store) fillMount(dir string, init func(dir string) error) error {
	tmp, cleanup, err := s.TempDir("mount")
	if err != nil {
		return err
	}
	defer cleanup()
	fresh := filepath.Join(tmp, "dir")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if init != nil {
		if err := init(fresh); err != nil {
			return err
		}
	}
	return syscall.Rename(fresh, dir) // in the place of an empty directory, which os.Rename refuses
}

// alone reports whether nobody else uses a mount. Who comes now waits until it is made.
func (m *mounts) alone(l *lease) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return l.users == 1
}

// errNotFilled tells that a directory stays as it is.
var errNotFilled = errors.New("there is nothing to fill it with")

// refillMount fills a directory if it is empty.
func (s *Store) refillMount(dir string, refill func(dir string) (bool, error)) error {
	if all, err := os.ReadDir(dir); err != nil || len(all) > 0 {
		return err
	}
	err := s.fillMount(dir, func(fresh string) error {
		ok, err := refill(fresh)
		if err == nil && !ok {
			return errNotFilled
		}
		return err
	})
	if errors.Is(err, errNotFilled) {
		return nil
	}
	return err
}

// putMount sets a record. The caller holds mu.
func (s *Store) putMount(name string, m mountRecord) error {
	v, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b := &Batch{s: s}
	b.put(kindMount, name, v)
	return s.commit(b)
}

// measureEvery bounds how often the collector walks through a cache mount that is in constant use.
const measureEvery = time.Minute

// measureMounts finds the sizes of cache mounts that were used since they were last measured: all such, or only those
// that it has not looked at for a while.
func (s *Store) measureMounts(ctx context.Context, all bool) {
	for _, name := range s.mounts.due(all) {
		size := diskUsage(ctx, s.path("mounts", name))
		if ctx.Err() != nil {
			return
		}
		if err := s.measured(name, size); err != nil && !errors.Is(err, ErrClosed) {
			s.log.Warn("cannot record the size of a cache mount", "cause", err)
		}
	}
}

// due returns the directories that may have to be measured.
func (m *mounts) due(all bool) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.measured == nil {
		m.measured = map[string]time.Time{}
	}
	for name := range m.dirty {
		if all || time.Since(m.measured[name]) > measureEvery {
			names = append(names, name)
			m.measured[name] = time.Now()
			delete(m.dirty, name)
		}
	}
	return names
}

func (s *Store) measured(name string, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m mountRecord
	v, err := s.value(keyOf(kindMount, name))
	if err != nil || v == nil || json.Unmarshal(v, &m) != nil || m.Size == size {
		return nil
	}
	m.Size = size
	return s.putMount(name, m)
}

// rootUsage returns the bytes that the whole root takes, without what is mounted on its temporary directories.
func (s *Store) rootUsage() int64 {
	tmp := s.path("tmp") + "/"
	var st unix.Stat_t
	if unix.Fstat(int(s.dir.Fd()), &st) != nil {
		return 0
	}
	return diskUsageBut(s.ctx, s.root, 0, func(path string, dev uint64) bool { return dev != st.Dev && strings.HasPrefix(path, tmp) })
}

// diskUsage returns the bytes that a directory takes, counting hard links once. What cannot be read counts nothing.
func diskUsage(ctx context.Context, dir string) int64 {
	return diskUsageBut(ctx, dir, 0, func(string, uint64) bool { return false })
}

// diskUsageBut adds up the files of a directory, of which each takes some bytes at least.
func diskUsageBut(ctx context.Context, dir string, least int64, skip func(path string, dev uint64) bool) (total int64) {
	linked := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if fi.IsDir() && skip(path, st.Dev) {
			return fs.SkipDir
		}
		if st.Nlink > 1 && !fi.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		total += max(st.Blocks*512, least)
		return nil
	})
	return total
}
