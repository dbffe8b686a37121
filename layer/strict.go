package layer

import (
	"archive/tar"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

// strict holds a layer to the rules of ApplyOptions.Strict while it is unpacked.
type strict struct {
	seen map[string]pathKind
	kept int // bytes of names in seen
	out  *Applied
}

// pathKind is what a path of the layer is so far.
type pathKind byte

const (
	pathImplied pathKind = iota + 1 // a directory without an entry
	pathDir
	pathFile // a regular file, or another name of one
	pathOther
	pathMarker
)

// maxStrict bounds the names that are kept in memory, in bytes.
const maxStrict = 256 << 20

// check refuses an entry. p is its clean name.
func (s *strict) check(p string, h *tar.Header) error {
	if slices.Contains(strings.Split(h.Name, "/"), "..") {
		return diag.Errorf(diag.Invalid, "%q: a name must not hold \"..\"", h.Name)
	}
	if p == "." {
		return nil
	}
	if err := s.parents(p, h); err != nil {
		return err
	}
	kind := pathOther
	switch h.Typeflag {
	case tar.TypeDir:
		kind = pathDir
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		kind = pathFile
	case tar.TypeLink:
		kind = pathFile
		to, err := cleanName(h.Linkname)
		if err != nil {
			return err
		}
		if s.seen[to] != pathFile {
			return diag.Errorf(diag.Invalid, "%q: a hard link to %q, which is no file of this layer above it", h.Name, h.Linkname)
		}
	}
	if m, hidden, err := parseMarker(p); err != nil {
		return err
	} else if m == whiteout {
		s.out.Whiteouts = append(s.out.Whiteouts, hidden)
		kind = pathMarker
	} else if m == opaque {
		s.out.Opaque = append(s.out.Opaque, hidden)
		kind = pathMarker
	}
	switch old := s.seen[p]; {
	case old == pathImplied && kind != pathDir:
		return diag.Errorf(diag.Invalid, "%q: other entries are below it, so it must be a directory", h.Name)
	case old > pathImplied:
		return diag.Errorf(diag.Invalid, "%q: the layer has this path twice", h.Name)
	}
	return s.set(p, kind)
}

// parents refuses what is not in a directory of this layer or of those below.
func (s *strict) parents(p string, h *tar.Header) error {
	for i := strings.LastIndexByte(p, '/'); i > 0; i = strings.LastIndexByte(p[:i], '/') {
		switch s.seen[p[:i]] {
		case pathDir, pathImplied:
			return nil // whose parents were looked at
		case 0:
			if err := s.set(strings.Clone(p[:i]), pathImplied); err != nil {
				return err
			}
		default:
			return diag.Errorf(diag.Invalid, "%q: %q is a file or a symlink of this layer, nothing can be below it", h.Name, p[:i])
		}
	}
	return nil
}

func (s *strict) set(p string, k pathKind) error {
	if s.seen[p] == 0 {
		if s.kept += len(p) + 48; s.kept > maxStrict {
			return diag.Errorf(diag.Exhausted, "the layer has too many names to be checked")
		}
	}
	s.seen[p] = k
	return nil
}
