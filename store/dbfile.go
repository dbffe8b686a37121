package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
)

// Page layout of a bbolt file, version 2 (go.etcd.io/bbolt, internal/common/{page,meta,bucket}.go). All numbers are in the
// machine's order; those of the machines that Strata runs on are little-endian.
const (
	pageHead   = 16 // id u64, flags u16, count u16, overflow u32
	elemSize   = 16 // branch: pos u32, ksize u32, pgid u64; leaf: flags u32, pos u32, ksize u32, vsize u32
	flagBranch = 1
	flagLeaf   = 2
)

// checkTree verifies that the inner pages of the file form a tree. bbolt follows page numbers without keeping count: a
// number that leads back to a page above it would overflow the stack, which is the one kind of damage that guard cannot
// catch. Only inner pages are read, about one in a hundred.
func checkTree(path string, pageSize int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	t := treeCheck{f: f, size: pageSize, seen: map[uint64]bool{}}
	root, high, err := t.meta()
	if err != nil {
		return err
	}
	t.high = high
	p, err := t.page(root)
	if err != nil || p == nil {
		return err
	}
	if binary.LittleEndian.Uint16(p[8:])&flagBranch != 0 {
		return errors.New("the root bucket has more than one page") // it holds one entry
	}
	for i := range int(binary.LittleEndian.Uint16(p[10:])) {
		at := pageHead + i*elemSize
		if at+elemSize > len(p) {
			return errors.New("a page is cut short")
		}
		val := at + int(binary.LittleEndian.Uint32(p[at+4:])) + int(binary.LittleEndian.Uint32(p[at+8:]))
		if val < 0 || val+8 > len(p) {
			return errors.New("a bucket lies outside its page")
		}
		if sub := binary.LittleEndian.Uint64(p[val:]); sub != 0 { // 0: the bucket's page is inline
			if err := t.walk(sub, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

type treeCheck struct {
	f    *os.File
	size int
	high uint64
	seen map[uint64]bool
}

// meta returns the root bucket's page and the number of pages, from the newer meta page. bbolt makes do with one good meta
// page, but if that is the older one, all of the last flush would be missing; salvage finds it.
func (t *treeCheck) meta() (root, high uint64, err error) {
	var newest uint64
	for i := range 2 {
		m := make([]byte, 64)
		if _, err := t.f.ReadAt(m, int64(i*t.size+pageHead)); err != nil {
			return 0, 0, err
		}
		h := fnv.New64a()
		h.Write(m[:56])
		if h.Sum64() != binary.LittleEndian.Uint64(m[56:]) {
			return 0, 0, fmt.Errorf("the checksum of meta page %d is wrong", i)
		}
		if tx := binary.LittleEndian.Uint64(m[48:]); tx >= newest {
			newest, root, high = tx, binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
		}
	}
	return root, high, nil
}

func (t *treeCheck) page(id uint64) ([]byte, error) {
	if id < 2 || id >= t.high {
		return nil, fmt.Errorf("page %d does not exist", id)
	}
	p := make([]byte, t.size)
	if _, err := t.f.ReadAt(p, int64(id)*int64(t.size)); err != nil && err != io.EOF {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(p); got != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	return p, nil
}

func (t *treeCheck) walk(id uint64, depth int) error {
	if t.seen[id] || depth > 32 {
		return fmt.Errorf("page %d is used twice", id)
	}
	t.seen[id] = true
	p, err := t.page(id)
	if err != nil || binary.LittleEndian.Uint16(p[8:])&flagBranch == 0 {
		return err
	}
	n := int(binary.LittleEndian.Uint16(p[10:]))
	if pageHead+n*elemSize > len(p) {
		over := int(binary.LittleEndian.Uint32(p[12:]))
		if pageHead+n*elemSize > (over+1)*t.size || over > 1<<12 {
			return fmt.Errorf("page %d is cut short", id)
		}
		p = make([]byte, (over+1)*t.size)
		if _, err := t.f.ReadAt(p, int64(id)*int64(t.size)); err != nil && err != io.EOF {
			return err
		}
	}
	leaves := true // the tree has the same depth everywhere: the first child tells for all
	for i := range n {
		child := binary.LittleEndian.Uint64(p[pageHead+i*elemSize+8:])
		if i == 0 {
			c, err := t.page(child)
			if err != nil {
				return err
			}
			leaves = binary.LittleEndian.Uint16(c[8:])&flagBranch == 0
		}
		switch {
		case child < 2 || child >= t.high || t.seen[child]:
			return fmt.Errorf("page %d leads to page %d", id, child)
		case leaves:
			t.seen[child] = true
		default:
			if err := t.walk(child, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuildDatabase replaces a damaged database by a new one that holds every record that can still be read, and moves the
// old file aside. A crash in between leaves either the old or the new one.
func rebuildDatabase(path string) (aside string, kept int, err error) {
	records, err := salvage(path)
	if err != nil {
		return "", 0, err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", 0, err
	}
	d, err := openDatabase(fresh)
	if err != nil {
		return "", 0, err
	}
	err = d.put(records)
	if cerr := d.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", 0, err
	}
	for n := 1; ; n++ {
		aside = fmt.Sprintf("%s.bad-%d", path, n)
		if err := os.Link(path, aside); err == nil {
			break
		} else if !errors.Is(err, os.ErrExist) {
			return "", 0, err
		}
	}
	return filepath.Base(aside), len(records), os.Rename(fresh, path)
}

// salvage reads the records of a damaged database file, from whatever looks like one of its leaf pages. Pages that are no
// longer in use hold old versions and deleted records. Of several versions the newest wins; a deleted record may come back,
// which does no harm: what it names is gone, so it reads as a miss.
func salvage(path string) (map[string][]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const size = 4096 // of the smallest page; larger ones start at multiples of it
	found := map[string][]byte{}
	newest := map[string]uint64{}
	for at := 0; at+pageHead <= len(b); at += size {
		page := b[at:]
		if binary.LittleEndian.Uint16(page[8:]) != flagLeaf {
			continue
		}
		for i := range int(binary.LittleEndian.Uint16(page[10:])) {
			key, val := leafElement(page, pageHead+i*elemSize)
			if key == nil {
				continue
			}
			k := string(key)
			if _, seq, err := unseal(k, val); err == nil && (found[k] == nil || seq > newest[k]) {
				found[k], newest[k] = val, seq
			}
		}
	}
	return found, nil
}

func leafElement(page []byte, at int) (key, val []byte) {
	if at+elemSize > len(page) {
		return nil, nil
	}
	pos, ks, vs := binary.LittleEndian.Uint32(page[at+4:]), binary.LittleEndian.Uint32(page[at+8:]), binary.LittleEndian.Uint32(page[at+12:])
	start := uint64(at) + uint64(pos)
	end := start + uint64(ks) + uint64(vs)
	if ks == 0 || end > uint64(len(page)) {
		return nil, nil
	}
	return page[start : start+uint64(ks)], page[start+uint64(ks) : end]
}
