package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The write-ahead log is a row of files wal.N. A file starts with a header frame, whose payload is the incarnation that
// wrote it, then holds one frame per update:
//
//	magic, 4 bytes | length of the payload, uint32 LE | crc32c of the payload, uint32 LE | payload
//
// The payload of an update is its sequence number (uvarint), then for each change the key (length, bytes) and the sealed
// value (length, bytes; length 0 = deleted). Changes are absolute, so replaying a frame twice does no harm, and a bad frame
// can be skipped: what it said is then unknown, and reads as a miss.
const (
	frameMagic = "\xa9STR"
	frameHead  = 12
	frameMax   = 64 << 20
)

// change is a new value of a record; nil deletes it.
type change struct {
	key string
	val []byte
}

// wal is the log's tail, which belongs to whoever holds Store.mu for writing.
type wal struct {
	dir         string
	incarnation string
	f           *os.File // nil until there is something to write
	size        int64
	last        uint64   // N of the newest file that was ever made
	files       []string // all files, oldest first, with f's name last
	buf         []byte
}

func appendFrame(b, payload []byte) []byte {
	b = append(b, frameMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

// append writes one update with a single write: it is there as a whole or not at all.
func (w *wal) append(seq uint64, changes []change) error {
	p := binary.AppendUvarint(nil, seq)
	for _, c := range changes {
		p = appendBytes(p, c.key)
		p = appendBytes(p, c.val)
	}
	if len(p) > frameMax {
		return errors.New("an update is too large")
	}
	if w.f == nil {
		if err := w.create(); err != nil {
			return err
		}
	}
	w.buf = appendFrame(w.buf[:0], p)
	n, err := w.f.Write(w.buf)
	if err != nil {
		// Half a frame may be there. It must not stand before a later one that is whole, even though replay would step over
		// it; if it cannot be cut off, the next update starts a new file.
		if n > 0 && w.f.Truncate(w.size) != nil {
			w.rotate()
		}
		return err
	}
	w.size += int64(n)
	return nil
}

func (w *wal) create() error {
	w.last++
	name := filepath.Join(w.dir, "wal."+strconv.FormatUint(w.last, 10))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	head := appendFrame(nil, []byte(w.incarnation))
	if _, err := f.Write(head); err != nil {
		f.Close()
		os.Remove(name)
		return err
	}
	w.f, w.size = f, int64(len(head))
	w.files = append(w.files, name)
	return nil
}

// rotate closes the file that is being written; the next update starts another one.
func (w *wal) rotate() {
	if w.f != nil {
		w.f.Close()
		w.f, w.size = nil, 0
	}
}

// replay calls f for every update of an earlier owner, oldest first. Files of another incarnation are provisional: nobody
// knows whether the layers that they name reached the disk. They are deleted. It returns the number of bad frames and of
// files that were dropped.
func (w *wal) replay(f func(seq uint64, changes []change)) (bad, dropped int, err error) {
	names, err := filepath.Glob(filepath.Join(w.dir, "wal.*"))
	if err != nil {
		return 0, 0, err
	}
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(strings.TrimPrefix(filepath.Ext(name), "."), 10, 64)
		return n
	}
	slices.SortFunc(names, func(a, b string) int { return int(number(a)) - int(number(b)) })
	for _, name := range names {
		w.last = max(w.last, number(name))
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return bad, dropped, err
		}
		head, rest, _ := nextFrame(b)
		if w.incarnation == "" || string(head) != w.incarnation {
			dropped++
			if err := os.Remove(name); err != nil {
				return bad, dropped, err
			}
			continue
		}
		w.files = append(w.files, name)
		bad += replayFrames(rest, f)
	}
	return bad, dropped, nil
}

// replayFrames returns the number of places where it had to skip something.
func replayFrames(b []byte, f func(seq uint64, changes []change)) (bad int) {
	for len(b) > 0 {
		p, rest, skipped := nextFrame(b)
		if skipped {
			bad++
		}
		if p == nil {
			break
		}
		b = rest
		r := reader{b: p}
		seq := r.uint()
		var changes []change
		for len(r.b) > 0 {
			c := change{key: string(r.bytes()), val: r.bytes()}
			if len(c.val) == 0 {
				c.val = nil
			}
			changes = append(changes, c)
		}
		if r.bad {
			bad++
			continue
		}
		f(seq, changes)
	}
	return bad
}

// nextFrame finds the first good frame. A nil payload means that there is none left. A torn frame at the end is not skipped: nobody
// was told of its update.
func nextFrame(b []byte) (payload, rest []byte, skipped bool) {
	whole := b
	for len(b) > 0 {
		if p, ok := frameAt(b); ok {
			return p, b[frameHead+len(p):], skipped
		}
		skipped = true
		i := bytes.Index(b[1:], []byte(frameMagic))
		if i < 0 {
			break
		}
		b = b[1+i:]
	}
	return nil, nil, skipped && !torn(whole)
}

// torn reports whether b begins a frame and ends before it: its writer was killed before it could say that the update was made.
func torn(b []byte) bool {
	if len(b) < frameHead {
		return strings.HasPrefix(frameMagic, string(b[:min(len(b), len(frameMagic))]))
	}
	n := binary.LittleEndian.Uint32(b[len(frameMagic):])
	return string(b[:len(frameMagic)]) == frameMagic && n <= frameMax && uint64(n) > uint64(len(b)-frameHead)
}

func frameAt(b []byte) ([]byte, bool) {
	if len(b) < frameHead || string(b[:4]) != frameMagic {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if uint64(n) > uint64(len(b)-frameHead) {
		return nil, false
	}
	p := b[frameHead : frameHead+int(n)]
	return p, crc32.Checksum(p, castagnoli) == binary.LittleEndian.Uint32(b[8:])
}
