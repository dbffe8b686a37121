package buildkit

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/diag"
)

// Bounds of a spool, in bytes: what it keeps in memory, and what it keeps at all.
const (
	spoolMemory = 256 << 10
	maxSpool    = 256 << 20
)

// spool is a list of messages, each after its length in 4 bytes, little-endian. The last ones are in memory, and what is
// older in a file, whose name lets it count for the tenant. Its user locks it.
type spool struct {
	dir   string // of the file
	most  int64  // bytes that are kept at all
	mem   []byte
	file  *os.File // nil = all is in memory
	filed int64    // bytes in the file
}

func (s *spool) size() int64 { return s.filed + int64(len(s.mem)) }

// add appends a message. If it fails, the spool is as it was before.
func (s *spool) add(m *control.StatusResponse) error {
	n := m.SizeVT()
	if s.size()+int64(n)+4 > s.most {
		return diag.Errorf(diag.Exhausted, "the build has said more than %d MiB", s.most>>20)
	}
	if len(s.mem) > 0 && len(s.mem)+n > spoolMemory {
		if err := s.flush(); err != nil {
			return err
		}
	}
	data, err := m.MarshalVT()
	if err != nil {
		return err
	}
	s.mem = append(binary.LittleEndian.AppendUint32(s.mem, uint32(len(data))), data...)
	return nil
}

// flush moves what is in memory to the file.
func (s *spool) flush() error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "log-")
		if err != nil {
			return diag.Errorf(diag.Unavailable, "the log of a build: %w", err)
		}
		s.file = f
	}
	n, err := s.file.WriteAt(s.mem, s.filed)
	if err != nil {
		return diag.Errorf(diag.Unavailable, "the log of a build: %w", err)
	}
	s.filed += int64(n)
	s.mem = s.mem[:0]
	return nil
}

// all reads what is there now. It may be used without the lock.
func (s *spool) all() io.Reader {
	mem := bytes.NewReader(bytes.Clone(s.mem))
	if s.file == nil {
		return mem
	}
	return io.MultiReader(io.NewSectionReader(s.file, 0, s.filed), mem)
}

// from reads what comes after an offset, which is that of a message: at most one part of a moderate size. It may be used
// without the lock.
func (s *spool) from(offset int64) io.Reader {
	if offset < s.filed {
		return io.NewSectionReader(s.file, offset, s.filed-offset)
	}
	return bytes.NewReader(bytes.Clone(s.mem[offset-s.filed:]))
}

func (s *spool) close() {
	if s.file != nil {
		_ = os.Remove(s.file.Name())
		_ = s.file.Close()
	}
	s.file, s.filed, s.mem = nil, 0, nil
}

// readMessage reads a message of a spool and tells how many bytes it takes there. The end is io.EOF.
func readMessage(r io.Reader) (*control.StatusResponse, int64, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size > maxMessage {
		return nil, 0, diag.Errorf(diag.Conflict, "the log of a build is damaged: a message of %d bytes", size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	m := &control.StatusResponse{}
	return m, int64(size) + 4, m.UnmarshalVT(data)
}
