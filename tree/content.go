package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// The digest of a selection is a Merkle tree of sha256: a directory's digest covers, for each child in the order of
// names, its name and either its fields (a file) or its digest (a directory).

// content hashes what sel selects. The order of its paths and their repetition do not matter.
func (f *Files) content(ctx context.Context, sel graph.Selector) (graph.Digest, error) {
	keys := make([][]byte, len(sel.Paths))
	byKey := map[string]graph.Select{}
	for i, s := range sel.Paths {
		keys[i] = graph.Canonical(s)
		byKey[string(keys[i])] = s
	}
	slices.SortFunc(keys, bytes.Compare)
	h := newContentHash()
	for _, k := range slices.CompactFunc(keys, bytes.Equal) {
		s := byKey[string(k)]
		matches, err := f.Pick(ctx, s, true)
		if err != nil {
			return "", err
		}
		h.num(uint64(len(matches)))
		for i := range matches {
			m := &matches[i]
			if s.Wildcard && graph.HasWildcard(s.Path) {
				h.str(path.Base(m.Path)) // the name decides where a copy puts it
			}
			h.links = map[FileID]string{}
			if m.IsDir() {
				h.base = len(m.Rel)
				sum := f.dirSum(h, &m.Pick, m.Rel, !(s.Contents || strings.HasSuffix(s.Path, "/")))
				h.w.Write(sum[:])
			} else {
				f.fields(h, &m.Pick, m.Rel)
			}
		}
	}
	return digest.NewDigest(digest.SHA256, h.w), nil
}

// contentHash writes fields so that no two lists of fields give the same bytes.
type contentHash struct {
	w     hash.Hash
	buf   []byte
	links map[FileID]string // files of a match that may have several names, by the first of them; copies keep such names one file
	base  int               // length of the match's path, which does not count
}

func newContentHash() *contentHash {
	h := &contentHash{w: sha256.New()}
	h.str("strata.content.1")
	return h
}

func (h *contentHash) num(n uint64) {
	h.buf = binary.AppendUvarint(h.buf[:0], n)
	h.w.Write(h.buf)
}

func (h *contentHash) str(s string) {
	h.buf = binary.AppendUvarint(h.buf[:0], uint64(len(s)))
	h.buf = append(h.buf, s...)
	h.w.Write(h.buf)
}

// dirSum is the digest of a directory: its own fields if self is set, and its children. It is a part of what in hashes.
func (f *Files) dirSum(in *contentHash, p *Pick, rel string, self bool) [32]byte {
	h := newContentHash()
	h.links, h.base = in.links, in.base
	if self {
		f.fields(h, p, rel)
	}
	for i := range p.Kids {
		k := &p.Kids[i]
		h.str(k.Name)
		if !k.IsDir() {
			f.fields(h, k, joinRel(rel, k.Name))
			continue
		}
		sum := f.dirSum(h, k, joinRel(rel, k.Name), true)
		h.buf = append(h.buf[:0], 'D')
		h.buf = append(h.buf, sum[:]...)
		h.w.Write(h.buf)
	}
	var sum [32]byte
	h.w.Sum(sum[:0])
	return sum
}

// Marks of the mode of a file that has attributes of users, and of one that is another name of an earlier file. Of others, nothing
// is written of these.
const (
	withAttrs = 1 << 32
	withLink  = 1 << 33
)

// fields writes what counts of one file.
func (f *Files) fields(h *contentHash, p *Pick, rel string) {
	caps, users := f.counted(p, rel)
	own := f.clientAttrs(p)
	mode := uint64(p.Mode)
	if len(users) > 0 || own != nil {
		mode |= withAttrs
	}
	first, again := h.link(p, rel)
	if again {
		mode |= withLink
	}
	b := binary.AppendUvarint(h.buf[:0], mode)
	b = binary.AppendUvarint(b, uint64(p.UID))
	b = binary.AppendUvarint(b, uint64(p.GID))
	bytes := func(v []byte) {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	switch p.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b = binary.AppendUvarint(b, uint64(p.Size))
		b = append(b, p.Sum[:]...)
		bytes(caps)
	case unix.S_IFLNK:
		bytes([]byte(p.Link))
	case unix.S_IFCHR, unix.S_IFBLK:
		b = binary.AppendUvarint(b, p.Rdev)
	}
	if len(users) > 0 {
		b = binary.AppendUvarint(b, uint64(len(users)))
		for _, name := range users {
			bytes([]byte(name))
			bytes(attr(f.host(p.Entry, rel), name))
		}
	}
	if own != nil {
		bytes(own[:])
	}
	if again {
		bytes([]byte(first))
	}
	h.buf = b
	h.w.Write(b)
}

// link returns the first name of a file, and whether this is another one.
func (h *contentHash) link(p *Pick, rel string) (first string, again bool) {
	if !p.IsRegular() || p.Nlink < 2 || h.links == nil {
		return "", false
	}
	if first, again = h.links[p.ID()]; !again {
		h.links[p.ID()] = rel[min(h.base, len(rel)):]
	}
	return first, again
}

// clientAttrs returns the digest of the attributes of a client's file or directory, nil if it has none that count.
func (f *Files) clientAttrs(p *Pick) *[32]byte {
	if p.IsDir() && p.dir != nil {
		return p.dir.attrs
	}
	return p.attrs
}

// counted returns the capability of a file or directory of a layer, and the names of the attributes of users. For those of a
// client's files see clientAttrs: they are read when the content is, for the files may change.
func (f *Files) counted(p *Pick, rel string) (caps []byte, users []string) {
	if !f.overlay || len(f.roots) == 0 || !p.IsRegular() && !p.IsDir() {
		return nil, nil
	}
	host := f.host(p.Entry, rel)
	for _, name := range counted(host) {
		if name == capabilityKey {
			caps = attr(host, name)
		} else {
			users = append(users, name)
		}
	}
	return caps, users
}
