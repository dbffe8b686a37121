package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// racyWindow is how long before it is looked at a file must have changed last for its times to be trusted: a later
// change within one tick of the file system's clock would leave them as they are.
const racyWindow = 20 * time.Millisecond

// maxLoaded is how many directories' indexes are kept in memory, maxUnused after how many savings a directory that no
// build reached is forgotten.
const (
	maxLoaded = 4
	maxUnused = 32
)

// Indexes are the stat indexes of the clients' directories, kept as files of one directory of the store.
type Indexes struct {
	dir  string
	mu   sync.Mutex
	open []*Index // the latest used last
}

// NewIndexes returns the indexes below the store's root.
func NewIndexes(storeRoot string) *Indexes {
	return &Indexes{dir: filepath.Join(storeRoot, "index")}
}

// Get returns the index of the directory with that key (session.Dir.Key, or its path). It is read from disk when first
// needed. Equal keys give one index.
func (x *Indexes) Get(key string) *Index {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := slices.IndexFunc(x.open, func(i *Index) bool { return i.key == key }); i >= 0 {
		idx := x.open[i]
		x.open = append(slices.Delete(x.open, i, i+1), idx)
		return idx
	}
	sum := sha256.Sum256([]byte(key))
	idx := &Index{key: key, file: filepath.Join(x.dir, "stat-"+hex.EncodeToString(sum[:12]))}
	x.open = append(x.open, idx)
	if len(x.open) > maxLoaded {
		x.open = slices.Delete(x.open, 0, 1) // those who use it keep it
	}
	return idx
}

// Index knows the digests of the files of one directory by their stat. It is a cache: a missing or broken one costs
// time only.
type Index struct {
	key, file string

	mu     sync.Mutex
	loaded bool
	dirty  bool
	dirs   map[string]*dirRecord
	save   sync.Mutex // one writer of the file
}

type dirRecord struct {
	files  []record // sorted by name; never changed, only replaced
	unused int      // savings since a build last reached it
}

// record is a regular file whose digest is known as long as its stat is the same.
type record struct {
	name         string
	size         int64
	mtime, ctime int64
	ino          uint64
	sum          [32]byte
}

// recall takes the entry's digest from a directory's records.
func (p *Pick) recall(known []record) bool {
	i, ok := slices.BinarySearchFunc(known, p.Name, func(r record, s string) int { return strings.Compare(r.name, s) })
	if !ok {
		return false
	}
	r := &known[i]
	if r.size != p.Size || r.mtime != p.MTime || r.ctime != p.CTime || r.ino != p.Ino {
		return false
	}
	p.sum, p.hashed = r.sum, true
	return true
}

// dir returns what is known of a directory's files.
func (x *Index) dir(rel string) []record {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.load()
	d := x.dirs[rel]
	if d == nil {
		return nil
	}
	d.unused = 0
	return d.files
}

// update takes the digests of a directory that was walked. Names that it has no more are forgotten.
func (x *Index) update(d *dir) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.load()
	var old []record
	if r := x.dirs[d.rel]; r != nil {
		old = r.files
	}
	files := make([]record, 0, len(d.kids))
	for i := range d.kids {
		e := &d.kids[i]
		if e.attrs != nil { // its attributes are looked at each time, which spares all others a look
			continue
		}
		if e.hashed && !e.racy {
			files = append(files, record{name: e.Name, size: e.Size, mtime: e.MTime, ctime: e.CTime, ino: e.Ino, sum: e.sum})
			continue
		}
		if j, ok := slices.BinarySearchFunc(old, e.Name, func(r record, s string) int { return strings.Compare(r.name, s) }); ok {
			files = append(files, old[j])
		}
	}
	x.dirs[d.rel] = &dirRecord{files: files}
	x.dirty = true
}
