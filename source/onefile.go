package source

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// oneFile is a layer of one file.
type oneFile struct {
	name     string
	mode     uint32 // 0 = 0600
	uid, gid int
	mtime    time.Time // zero = 1970
}

// make writes the layer; the stack's draft is not committed.
func (f oneFile) make(ctx context.Context, env Env, content io.Reader) (*tree.Stack, error) {
	draft, err := env.Hold.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	n, err := f.write(ctx, filepath.Join(draft.Dir, f.name), content)
	if err == nil {
		// The directory is part of the layer; its time must not be that of the build.
		err = os.Chtimes(draft.Dir, f.time(), f.time())
	}
	if err != nil {
		draft.Discard()
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", f.name, err)
	}
	return tree.NewDraftStack(env.Store, nil, draft, store.LayerInfo{Size: n, Files: 1}), nil
}

func (f oneFile) time() time.Time {
	if f.mtime.IsZero() {
		return time.Unix(0, 0)
	}
	return f.mtime
}

func (f oneFile) write(ctx context.Context, name string, content io.Reader) (int64, error) {
	mode := f.mode & 0o7777
	if mode == 0 {
		mode = 0o600
	}
	w, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	n, err := io.Copy(w, &archive.Cancelable{Ctx: ctx, Reader: content})
	if err != nil {
		return n, err
	}
	if f.uid != 0 || f.gid != 0 {
		if err := w.Chown(f.uid, f.gid); err != nil {
			return n, err
		}
	}
	// After chown, which clears setuid. os.FileMode keeps these bits elsewhere.
	bits := os.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if mode&bit != 0 {
			bits |= flag
		}
	}
	if err := w.Chmod(bits); err != nil {
		return n, err
	}
	if err := w.Close(); err != nil {
		return n, err
	}
	return n, os.Chtimes(name, f.time(), f.time())
}

// fileName returns the last element of a name that came from elsewhere, or fallback if there is none that can be a file's.
func fileName(s, fallback string) string {
	s = s[strings.LastIndexAny(s, `/\`)+1:]
	if s == "" || s == "." || s == ".." || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fallback
	}
	return s
}

// checkName refuses a name that the user gave and that is no file's.
func checkName(s string) error {
	if s != "" && fileName(s, "") != s {
		return diag.Errorf(diag.Invalid, "%q cannot be the name of a file", s)
	}
	return nil
}

// stored opens a blob of the store that is known by its digest.
func stored(ctx context.Context, s *store.Store, d graph.Digest) (io.ReadCloser, error) {
	b, err := s.OpenBlob(ctx, d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{b.Reader(), b}, nil
}
