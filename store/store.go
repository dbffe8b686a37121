package store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Options of Open. The zero value is usable.
type Options struct {
	Log *slog.Logger // for operators; nil = slog.Default()
	// MaxBytes is the cap that the garbage collector holds, over layers, blobs and cache mounts. 0 = a tenth of the disk,
	// at least 20 GiB, but never more than four fifths of what the store has and could still get. Negative = no cap.
	MaxBytes int64
	Serves   bool // the owner takes calls of other processes: who finds the root locked is told so
	// Orphaned is called when the last owner did not end well, before what it left is cleared: its processes may still be
	// writing there. nil = nothing can be.
	Orphaned func()
	// Copy copies the directory of a layer that was made here to an empty one, and returns the diff_id of what it has read.
	// Differs compares a layer's directory with the blob that it was unpacked from, and returns what is not the same, or "".
	// DiffID computes the digest of a layer's tar from its directory. With them images survive a disk that fails for a moment,
	// and the loss of the database. nil = they do not.
	Copy    func(ctx context.Context, from, to string) (graph.Digest, error)
	DiffID  func(ctx context.Context, dir string) (graph.Digest, error)
	Differs func(ctx context.Context, blob io.Reader, dir string) (string, error)

	overhead    func() int64         // for tests: instead of measuring the root
	flushDelay  time.Duration        // for tests; 0 = defaultFlushDelay
	incarnation string               // for tests; "" = incarnation(root)
	statfs      func(*unix.Statfs_t) // for tests: changes the file system's figures
	syncfs      func(fd int) error   // for tests; nil = syncfs(2)
}

// defaultFlushDelay is how long the first of a batch of changes waits for others before the batch is synced. With the sync
// itself it stays below the 2 s that are promised.
const defaultFlushDelay = 800 * time.Millisecond

// Store is an open root. Its methods may be called from any goroutine.
type Store struct {
	root   string
	opt    Options
	log    *slog.Logger
	lock   *os.File
	word   atomic.Value // the string that the lock was signed with
	dir    *os.File     // the root, for syncfs
	opened time.Time

	// mu guards the records. Reading holds it shared, so that the garbage collector, which holds it alone, never decides
	// over something that a reader is about to hold.
	mu     sync.RWMutex
	closed bool
	db     *database
	cur    *generation // changes since the last flush began
	frozen *generation // changes that are being flushed; nil if none
	wal    wal
	next   LayerID // never given out yet
	// namesChanged says that index.json lacks names; listed is what it has. A flush uses them alone.
	namesChanged bool
	listed       map[string]listedImage
	drafts       map[LayerID]begun

	clock    atomic.Uint64 // counts updates and uses
	touchMu  sync.Mutex
	touched  map[string]use
	presence presence
	verified verified
	holds    holds
	writers  writers
	mounts   mounts
	usage    usage
	failures failures
	trash    trash
	swept    chan struct{} // closed when there is nothing left to sweep; nil if there never was

	durable  sync.Mutex // held by a flush until what it has to say of a failed disk is done
	flushMu  sync.Mutex
	wake     chan struct{} // a flush is due
	tendWake chan struct{} // the collector should look
	gcMu     sync.Mutex

	rebuilding atomic.Pointer[rebuild] // nil = none is under way
	untidy     atomic.Bool             // the next owner should sweep

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	bgMu    sync.Mutex
	bgEnded bool
	wg      sync.WaitGroup
}

// Open makes this process the owner of a root, which is made if it does not exist. If another process owns it, the error
// is of kind diag.Conflict and holds a *[LockedError]. What a dead owner left behind is cleared in the background.
func Open(root string, opt Options) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "cannot use the root %s: %w", root, err)
	}
	s := &Store{
		root: root, opt: opt, log: opt.Log, drafts: map[LayerID]begun{}, touched: map[string]use{}, next: 1, opened: time.Now(),
		cur: newGeneration(), wake: make(chan struct{}, 1), tendWake: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.opt.flushDelay == 0 {
		s.opt.flushDelay = defaultFlushDelay
	}
	if s.opt.syncfs == nil {
		s.opt.syncfs = unix.Syncfs
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.rebuilding.Store(&rebuild{}) // openRecords deals with a damaged database itself
	err = s.open()
	s.rebuilding.Store(nil)
	if err != nil {
		s.release()
		return nil, err
	}
	s.mu.RLock()
	replayed := s.cur.hard
	s.mu.RUnlock()
	if replayed {
		kick(s.wake)
	}
	s.background(s.flusher)
	s.background(s.tender)
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		err = s.fail("cannot make the root", err)
		if d, ok := err.(*diag.Error); ok && d.Hint == "" { //nolint:errorlint // fail made it
			return d.WithHint("choose another root")
		}
		return err
	}
	left, err := s.takeLock()
	if err != nil {
		return err
	}
	if left != "" && s.opt.Orphaned != nil {
		s.opt.Orphaned()
	}
	fresh, err := s.layout()
	if err != nil {
		return err
	}
	if s.dir, err = os.Open(s.root); err != nil {
		return s.fail("cannot open the root", err)
	}
	rebuilt, err := s.openRecords(fresh)
	if err != nil {
		return err
	}
	s.trash.start(s)
	s.namesChanged = s.indexUnknown()
	if !fresh && (rebuilt || s.neverFlushed()) {
		if err := s.findNames(); err != nil {
			return err
		}
	}
	if left != "" || rebuilt {
		if err := s.sweep(); err != nil {
			return err
		}
	}
	return nil
}

// openRecords opens the database, after replacing a damaged one, and replays the log.
func (s *Store) openRecords(fresh bool) (rebuilt bool, err error) {
	path := s.path("meta.db")
	if fi, err := os.Stat(path); !fresh && (err != nil || fi.Size() == 0) {
		rebuilt = true
		s.log.Warn("the metadata database is gone; only blobs and cache mounts are found again", "path", path)
	}
	err = s.openDatabase(path, rebuilt)
	if dmg := new(damageError); errors.As(err, &dmg) {
		aside, kept, rerr := rebuildDatabase(path)
		if rerr != nil {
			return false, s.fail("cannot rebuild the metadata database", rerr)
		}
		rebuilt = true
		s.log.Warn("the metadata database was damaged; a new one was made from what could be read", "cause", dmg.what, "records", kept, "old", aside)
		err = s.openDatabase(path, true)
	}
	if err != nil {
		return false, s.fail("cannot open the metadata database", err)
	}
	inc := s.opt.incarnation
	if inc == "" {
		inc = incarnation(s.root)
	}
	s.wal = wal{dir: s.root, incarnation: inc}
	bad, dropped, err := s.wal.replay(s.replayed)
	if err != nil {
		return false, s.fail("cannot read the log", err)
	}
	if bad > 0 || dropped > 0 {
		s.log.Warn("a part of the log was not used", "damagedPlaces", bad, "filesOfAnEarlierBoot", dropped)
	}
	return rebuilt, nil
}

func (s *Store) openDatabase(path string, rebuilt bool) (err error) {
	if s.db, err = openDatabase(path); err != nil {
		return err
	}
	if err = s.readCounters(rebuilt); err != nil {
		_ = s.db.close()
		s.db = nil
	}
	return err
}

// readCounters takes up the clock and the layer numbers where the last flush left them.
func (s *Store) readCounters(rebuilt bool) error {
	clock, err1 := s.counter("clock")
	next, err2 := s.counter("next")
	if err1 != nil || err2 != nil || rebuilt {
		// Step over everything that any record knows, and over what deleted ones may have known.
		const gap = 1 << 16
		for _, k := range []kind{kindLayer, kindResult, kindUse} {
			err := s.each(k, func(name string, seq uint64, b []byte, err error) {
				clock = max(clock, seq)
				if id, ok := layerOf(keyOf(k, name)); ok {
					next = max(next, uint64(id)+gap)
				}
			})
			if err != nil {
				return err
			}
		}
		entries, _ := os.ReadDir(s.path("snapshots"))
		for _, e := range entries {
			if v, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
				next = max(next, v+gap)
			}
		}
		clock += gap
	}
	s.clock.Store(clock)
	s.next = LayerID(max(next, 1))
	return nil
}

// neverFlushed reports whether the database has nothing that a flush writes: it may have taken the place of one that was lost.
func (s *Store) neverFlushed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.value(keyOf(kindState, "clock"))
	return err == nil && b == nil
}

func (s *Store) counter(name string) (uint64, error) {
	b, err := s.value(keyOf(kindState, name))
	if err != nil || b == nil {
		return 0, err
	}
	return decodeUint(b)
}

// replayed takes over one update of an earlier owner.
func (s *Store) replayed(seq uint64, changes []change) {
	s.clock.Store(max(s.clock.Load(), seq))
	for _, c := range changes {
		if c.key == "" {
			continue
		}
		if c.val != nil {
			p, _, err := unseal(c.key, c.val)
			if err != nil {
				continue
			}
			if kind(c.key[0]) == kindUse {
				if u, err := decodeUse(p); err == nil {
					s.clock.Store(max(s.clock.Load(), u.clock))
				}
			}
		}
		if id, ok := layerOf(c.key); ok {
			s.next = max(s.next, id+1)
		}
		s.cur.set(c)
		if k := kind(c.key[0]); c.val != nil && (k == kindLayer || k == kindBlob) {
			s.cur.made[c.key] = true // for all that is known
		}
	}
}

// Root returns the root's absolute path.
func (s *Store) Root() string { return s.root }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// Close ends the ownership. Changes that are not yet durable are synced first; if there are none, nothing is.
func (s *Store) Close() error {
	s.Leave()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	hard := s.cur.hard
	s.mu.Unlock()
	var err error
	if hard {
		err = s.flush() // while what it may have to do about a failed disk is still allowed
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.bgMu.Lock()
	s.bgEnded = true
	s.bgMu.Unlock()
	s.cancel()
	s.wg.Wait()
	unfinished := !s.trash.stop()

	if terr := s.saveTouches(); err == nil {
		err = terr
	}
	s.mu.RLock()
	hard = s.cur.hard
	unfinished = unfinished || len(s.drafts) > 0
	s.mu.RUnlock()
	if hard {
		if ferr := s.flush(); ferr != nil {
			err = ferr
		}
	}
	left := ""
	if unfinished || s.untidy.Load() || s.holds.tempDirs.Load() > 0 {
		left = "sweep\n"
	}
	if lerr := s.writeLock(left); err == nil && lerr != nil {
		err = s.fail("cannot write the lock", lerr)
	}
	s.release()
	return err
}

// release closes what open opened.
func (s *Store) release() {
	s.cancel()
	s.wal.rotate()
	if s.db != nil {
		if err := s.db.close(); err != nil {
			s.log.Warn("cannot close the metadata database", "cause", err)
		}
	}
	for _, f := range []*os.File{s.dir, s.lock} {
		if f != nil {
			f.Close()
		}
	}
}

// background runs f in a goroutine that Close waits for; f ends soon after s.ctx does. It does nothing once Close has begun.
func (s *Store) background(f func()) {
	s.bgMu.Lock()
	defer s.bgMu.Unlock()
	if !s.bgEnded {
		s.wg.Go(f)
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// TempDir makes an empty directory that belongs to the caller until cleanup. It is on the same file system as the layers.
func (s *Store) TempDir(prefix string) (dir string, cleanup func(), err error) {
	dir, err = os.MkdirTemp(s.path("tmp"), filepath.Base(prefix)+"-*")
	if err != nil {
		return "", nil, s.fail("cannot make a temporary directory", err)
	}
	s.holds.tempDirs.Add(1)
	return dir, sync.OnceFunc(func() {
		s.trash.put(dir)
		s.holds.tempDirs.Add(-1)
	}), nil
}

// blobPath is where the blob of a valid digest lies.
func (s *Store) blobPath(d graph.Digest) string {
	return s.path("blobs", d.Algorithm().String(), d.Encoded())
}
