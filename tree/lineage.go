package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/store"
)

// A lineage is the layers that one and the same copy made at different times: of each, the latest is remembered with the
// digests of its files, so that the next one takes what did not change from it. Its file holds the magic and the CRC-32C
// (see writeSealed), the layer's number, and the directories: path, number of files, and the files sorted by name: name,
// size, mode, uid, gid, mtime (8 bytes), sha256.

const (
	lineageMagic = "strata lineage 1\n"
	maxLineages  = 128 // files kept; the oldest go first
)

// madeFile is a regular file of a layer.
type madeFile struct {
	name           string
	size           int64
	mode, uid, gid uint32
	mtime          int64
	sum            [32]byte
	group          *linkGroup // of a file that may have several names
}

// Lineage is an earlier layer whose files are known.
type Lineage struct {
	dirs map[string][]madeFile
	fd   int
	hold *store.Hold
}

func lineageFile(s *store.Store, key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.Root(), "index", "copy-"+hex.EncodeToString(sum[:12]))
}

// FindLineage returns the latest layer of a kind of copy, nil if there is none. The layer is held until it is closed.
func FindLineage(s *store.Store, key string) *Lineage {
	file := lineageFile(s, key)
	data, err := readSealed(file, lineageMagic)
	if err != nil {
		return nil
	}
	r := reader{s: data}
	id := store.LayerID(r.num())
	l := &Lineage{hold: s.Hold(), fd: -1}
	l.hold.Layers(id)
	if _, err := s.Layer(id); err != nil || r.bad {
		l.Close()
		os.Remove(file)
		return nil
	}
	l.fd, err = openRoot(s.LayerDir(id))
	if err == nil {
		err = l.decode(&r)
	}
	if err != nil {
		l.Close()
		return nil
	}
	return l
}

// Close ends the use of the layer. A nil lineage may be closed.
func (l *Lineage) Close() {
	if l == nil {
		return
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
	l.hold.Release()
}

func (l *Lineage) dir(rel string) []madeFile { return l.dirs[rel] }

func (l *Lineage) open(rel string) (int, error) {
	return openIn(l.fd, rel, unix.O_PATH|unix.O_DIRECTORY)
}

func (l *Lineage) decode(r *reader) error {
	ndirs, nfiles := r.count(), r.count()
	l.dirs = make(map[string][]madeFile, ndirs)
	all := make([]madeFile, nfiles)
	for range ndirs {
		rel, n := r.str(), r.count()
		if n > len(all) || r.bad {
			return errIndex
		}
		files := all[:n:n]
		all = all[n:]
		for i := range files {
			m := &files[i]
			m.name, m.size = r.str(), int64(r.num())
			m.mode, m.uid, m.gid = uint32(r.num()), uint32(r.num()), uint32(r.num())
			m.mtime = int64(r.fixed())
			copy(m.sum[:], r.take(32))
		}
		l.dirs[rel] = files
	}
	if r.bad {
		return errIndex
	}
	return nil
}

func byName(a, b madeFile) int { return strings.Compare(a.name, b.name) }

// has reports whether a sorted list has a file that is the same in all that counts.
func has(known []madeFile, m *madeFile) bool {
	i, ok := slices.BinarySearchFunc(known, *m, byName)
	if !ok {
		return false
	}
	k := known[i]
	k.group = m.group
	return k == *m
}

// SaveLineage remembers the finished layer as the latest of its kind. It is a cache: if it cannot be written, the next
// copy copies everything.
func (u *Upper) SaveLineage(s *store.Store, key string) error {
	n := 0
	for _, files := range u.made {
		n += len(files)
	}
	if n == 0 || u.opaque {
		return nil
	}
	b := make([]byte, 0, n*96)
	b = binary.AppendUvarint(b, uint64(u.draft.ID))
	b = binary.AppendUvarint(b, uint64(len(u.made)))
	counted := len(b)
	b = binary.AppendUvarint(b, 1<<32) // the number of files follows, in the same five bytes
	total := uint64(0)
	for rel, files := range u.made {
		files = latest(files)
		b = appendString(b, rel)
		b = binary.AppendUvarint(b, uint64(len(files)))
		total += uint64(len(files))
		for i := range files {
			m := &files[i]
			b = appendString(b, m.name)
			b = binary.AppendUvarint(b, uint64(m.size))
			b = binary.AppendUvarint(b, uint64(m.mode))
			b = binary.AppendUvarint(b, uint64(m.uid))
			b = binary.AppendUvarint(b, uint64(m.gid))
			b = binary.LittleEndian.AppendUint64(b, uint64(m.mtime))
			b = append(b, m.sum[:]...)
		}
	}
	for i := range 5 {
		b[counted+i] = byte(total>>(7*i))&0x7f | 0x80
	}
	b[counted+4] &^= 0x80
	sweepLineages(filepath.Join(s.Root(), "index"))
	return writeSealed(lineageFile(s, key), lineageMagic, b)
}

// Change is a file that the layer has otherwise than an earlier one has it.
type Change struct {
	Path string // in the layer
	What string // "new", "removed", or what differs: "content", "mode", "owner"
}

// Changes compares the files that were copied with those of an earlier layer: the first few differences by path, and how
// many there are. Times do not count, nor do files with several names.
func (u *Upper) Changes(earlier *Lineage, few int) (first []Change, n int) {
	if earlier == nil {
		return nil, 0
	}
	dirs := slices.Collect(maps.Keys(u.made))
	for rel := range earlier.dirs {
		if _, ok := u.made[rel]; !ok {
			dirs = append(dirs, rel)
		}
	}
	slices.Sort(dirs)
	for _, rel := range dirs {
		compare(earlier.dirs[rel], latest(u.made[rel]), func(name, what string) {
			if n++; n <= few {
				first = append(first, Change{joinRel(rel, name), what})
			}
		})
	}
	return first, n
}

// compare calls differs for each name of two sorted lists that is not the same in both.
func compare(old, now []madeFile, differs func(name, what string)) {
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && old[0].name < now[0].name:
			differs(old[0].name, "removed")
			old = old[1:]
		case len(old) == 0 || now[0].name < old[0].name:
			differs(now[0].name, "new")
			now = now[1:]
		default:
			a, b := &old[0], &now[0]
			switch {
			case a.sum != b.sum || a.size != b.size:
				differs(a.name, "content")
			case a.mode != b.mode:
				differs(a.name, "mode")
			case a.uid != b.uid || a.gid != b.gid:
				differs(a.name, "owner")
			}
			old, now = old[1:], now[1:]
		}
	}
}

// latest sorts a directory's files and keeps, of those that were written twice, the last; a file that has several names is
// left out, since its names must stay one file.
func latest(files []madeFile) []madeFile {
	slices.SortStableFunc(files, byName)
	out := files[:0]
	for i := range files {
		last := i+1 == len(files) || files[i+1].name != files[i].name
		if last && (files[i].group == nil || files[i].group.names == 1) {
			out = append(out, files[i])
		}
	}
	return out
}

// sweepLineages keeps the number of files bounded.
func sweepLineages(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, "copy-*"))
	if err != nil || len(names) < maxLineages {
		return
	}
	type aged struct {
		name string
		at   int64
	}
	var all []aged
	for _, n := range names {
		if fi, err := os.Stat(n); err == nil {
			all = append(all, aged{n, fi.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return int(min(max(a.at-b.at, -1), 1)) })
	for _, a := range all[:max(len(all)-maxLineages+1, 0)] {
		os.Remove(a.name)
	}
}
