package tree

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
)

// The index file: the magic, the CRC-32C of the rest (4 bytes), the numbers of directories and files, and the
// directories: path, savings unused, number of files, and the files: name, size, mtime, ctime, inode, sha256. Strings have
// their length in front; numbers are varints of encoding/binary, but times and inodes are 8 bytes, little endian.

const indexMagic = "strata stat index 2\n" // 1: files with attributes were among them

var errIndex = errors.New("malformed index")

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// load reads the file. Call it with x.mu held.
func (x *Index) load() {
	if x.loaded {
		return
	}
	x.loaded = true
	data, err := readSealed(x.file, indexMagic)
	if err == nil {
		x.dirs, err = decodeIndex(data)
	}
	if err != nil {
		x.dirs = map[string]*dirRecord{}
	}
}

// Save writes the index to disk if it learned something. The file is replaced as a whole.
func (x *Index) Save() error {
	x.save.Lock()
	defer x.save.Unlock()
	x.mu.Lock()
	if !x.dirty {
		x.mu.Unlock()
		return nil
	}
	for rel, d := range x.dirs {
		if d.unused++; d.unused > maxUnused {
			delete(x.dirs, rel)
		}
	}
	data := encodeIndex(x.dirs)
	x.dirty = false
	x.mu.Unlock()
	return writeSealed(x.file, indexMagic, data)
}

func encodeIndex(dirs map[string]*dirRecord) []byte {
	n := 0
	for _, d := range dirs {
		n += len(d.files)
	}
	b := make([]byte, 0, n*100+len(dirs)*64)
	b = binary.AppendUvarint(b, uint64(len(dirs)))
	b = binary.AppendUvarint(b, uint64(n))
	for rel, d := range dirs {
		b = appendString(b, rel)
		b = binary.AppendUvarint(b, uint64(d.unused))
		b = binary.AppendUvarint(b, uint64(len(d.files)))
		for i := range d.files {
			f := &d.files[i]
			b = appendString(b, f.name)
			b = binary.AppendUvarint(b, uint64(f.size))
			b = binary.LittleEndian.AppendUint64(b, uint64(f.mtime))
			b = binary.LittleEndian.AppendUint64(b, uint64(f.ctime))
			b = binary.LittleEndian.AppendUint64(b, f.ino)
			b = append(b, f.sum[:]...)
		}
	}
	return b
}

func decodeIndex(data string) (map[string]*dirRecord, error) {
	r := reader{s: data}
	ndirs, nfiles := r.count(), r.count()
	dirs := make(map[string]*dirRecord, ndirs)
	all := make([]record, nfiles)
	recs := make([]dirRecord, ndirs)
	for i := range recs {
		rel := r.str()
		recs[i].unused = int(r.num())
		n := r.count()
		if n > len(all) || r.bad {
			return nil, errIndex
		}
		recs[i].files, all = all[:n:n], all[n:]
		for j := range recs[i].files {
			f := &recs[i].files[j]
			f.name, f.size = r.str(), int64(r.num())
			f.mtime, f.ctime, f.ino = int64(r.fixed()), int64(r.fixed()), r.fixed()
			copy(f.sum[:], r.take(32))
		}
		dirs[rel] = &recs[i]
	}
	if r.bad {
		return nil, errIndex
	}
	return dirs, nil
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// reader reads a file's fields. Its strings share the memory of the file.
type reader struct {
	s   string
	bad bool
}

func (r *reader) take(n int) string {
	if n < 0 || n > len(r.s) {
		r.bad, r.s = true, ""
		return ""
	}
	out := r.s[:n]
	r.s = r.s[n:]
	return out
}

func (r *reader) num() uint64 {
	var x uint64
	for i := 0; i < len(r.s) && i < binary.MaxVarintLen64; i++ {
		c := r.s[i]
		x |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.s = r.s[i+1:]
			return x
		}
	}
	r.bad, r.s = true, ""
	return 0
}

// count is a number of things of at least one byte each that follow.
func (r *reader) count() int {
	n := r.num()
	if n > uint64(len(r.s)) {
		r.bad, r.s = true, ""
		return 0
	}
	return int(n)
}

func (r *reader) str() string { return r.take(r.count()) }

func (r *reader) fixed() uint64 {
	s := r.take(8)
	if len(s) < 8 {
		return 0
	}
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// readSealed returns the body of a file that writeSealed wrote.
func readSealed(file, magic string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	n := len(magic)
	if len(b) < n+4 || string(b[:n]) != magic || binary.LittleEndian.Uint32(b[n:]) != castagnoli(b[n+4:]) {
		return "", errIndex
	}
	return string(b[n+4:]), nil
}

// writeSealed replaces a file by magic, checksum and body. It does not wait for the disk: a torn file is found by its
// checksum and is only a cache.
func writeSealed(file, magic string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".tmp-*")
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint32([]byte(magic), castagnoli(body))
	_, err = f.Write(head)
	if err == nil {
		_, err = f.Write(body)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
