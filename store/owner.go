package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

type ownerKey struct{}

// WithOwner returns a context for the work of an owner, such as one client of a daemon: the layers and blobs that are begun
// with it count as the owner's. Layers, blobs and results that no context with an owner made belong to nobody, "".
func WithOwner(ctx context.Context, owner string) context.Context {
	if owner == "" {
		return ctx
	}
	return context.WithValue(ctx, ownerKey{}, owner)
}

func ownerOf(ctx context.Context) string {
	owner, _ := ctx.Value(ownerKey{}).(string)
	return owner
}

// OwnerDir is the directory below the root for what an owner has besides the store's own files. Nobody's is the root.
func (s *Store) OwnerDir(owner string) string {
	if owner == "" {
		return s.root
	}
	return s.path("tenants", ownerName(owner))
}

// ownerName stands for an owner in the names of files.
func ownerName(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:16])
}

// MountKey returns the key of a cache mount that belongs to an owner.
func MountKey(owner, id string) string { return owner + "\x00" + id }

func mountOwner(key string) string {
	owner, _, _ := strings.Cut(key, "\x00")
	return owner
}

// takenBy returns whose space a record stands for, and how many bytes of it.
func takenBy(key string, payload []byte) (owner string, size int64) {
	if payload == nil {
		return "", 0
	}
	switch kind(key[0]) {
	case kindLayer:
		l, _ := decodeLayer(0, payload)
		return l.Owner, l.Size
	case kindBlob:
		size, owner, _ := decodeBlob(payload)
		return owner, size
	case kindMount:
		var m mountRecord
		_ = json.Unmarshal(payload, &m)
		return mountOwner(m.Key), m.Size
	}
	return "", 0
}

// space counts bytes, and those that have an owner for each owner too.
type space struct {
	bytes int64
	owned map[string]int64
}

func (s *space) add(owner string, n int64) {
	s.bytes += n
	if owner == "" {
		return
	}
	if s.owned == nil {
		s.owned = map[string]int64{}
	}
	if s.owned[owner] += n; s.owned[owner] == 0 {
		delete(s.owned, owner)
	}
}

func (s *space) plus(o space) {
	s.bytes += o.bytes
	for owner, n := range o.owned {
		s.add(owner, n)
		s.bytes -= n
	}
}

// more adds what a record stands for.
func (s *space) more(key string, payload []byte) {
	owner, n := takenBy(key, payload)
	s.add(owner, n)
}

// less takes away what a record stood for.
func (s *space) less(key string, payload []byte) {
	owner, n := takenBy(key, payload)
	s.add(owner, -n)
}

// Owned returns the bytes of the layers, blobs and cache mounts that an owner has in the store, and of blobs whose transfer was
// broken off.
func (s *Store) Owned(owner string) (int64, error) {
	if err := s.count(); err != nil {
		return 0, s.fail("cannot find out what an owner has", err)
	}
	partial := s.leftPartials(owner)
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	return s.usage.owned[owner] + partial, nil
}

// leftPartials returns the bytes of an owner's blobs whose transfer was broken off.
func (s *Store) leftPartials(owner string) (n int64) {
	end := "-" + s.writers.know(owner)
	entries, _ := os.ReadDir(s.path("ingest"))
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), end) || s.writers.active(e.Name()) {
			continue
		}
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// LeastSize is what a file of a running step takes at least, in bytes: empty files take up the inodes of the file system, which are
// about as many as it has place for small files.
const LeastSize = 4096

// Growing returns the bytes on disk of what an owner is writing at this moment: the layers of running steps, their cache
// mounts beyond what Owned counts, and blobs. It walks through the files.
func (s *Store) Growing(ctx context.Context, owner string) (n int64) {
	s.mu.RLock()
	var dirs []string
	for id, d := range s.drafts {
		if d.owner == owner {
			dirs = append(dirs, s.layerRoot(id))
		}
	}
	s.mu.RUnlock()
	dirs = append(dirs, s.writers.of(owner)...)
	for _, dir := range dirs {
		n += diskUsageBut(ctx, dir, LeastSize, func(string, uint64) bool { return false })
	}
	for name, recorded := range s.leasedMounts(owner) {
		n += max(0, diskUsage(ctx, s.path("mounts", name))-recorded)
	}
	return n
}

// leasedMounts returns the cache mounts of an owner that are in use, with the sizes in their records.
func (s *Store) leasedMounts(owner string) map[string]int64 {
	s.mounts.mu.Lock()
	var names []string
	for name := range s.mounts.leases {
		names = append(names, name)
	}
	s.mounts.mu.Unlock()
	found := map[string]int64{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, name := range names {
		var m mountRecord
		v, err := s.value(keyOf(kindMount, name))
		if err == nil && v != nil && json.Unmarshal(v, &m) == nil && mountOwner(m.Key) == owner {
			found[name] = m.Size
		}
	}
	return found
}

// DiskUsage returns the bytes that a directory takes on disk. What cannot be read counts nothing.
func DiskUsage(ctx context.Context, dir string) int64 { return diskUsage(ctx, filepath.Clean(dir)) }
