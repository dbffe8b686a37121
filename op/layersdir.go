package op

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tree"
)

// outputDir is the finished directory of an OUTPUT. It was written by the build: no link of it is followed, and only regular
// files are read.
type outputDir struct {
	fd  int
	dir string // its name on this machine
	at  string // where the steps saw it
}

func openOutput(dir, at string) (*outputDir, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &outputDir{fd: fd, dir: dir, at: at}, nil
}

// Close ends the reading.
func (d *outputDir) Close() error { return unix.Close(d.fd) }

// rel turns a path that the build wrote into one below the directory: relative ones are below output/.
func (d *outputDir) rel(p string) (string, error) {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return "", diag.Errorf(diag.Invalid, "%q: a path must not hold \"..\"", p)
		}
	}
	if strings.ContainsRune(p, 0) {
		return "", diag.Errorf(diag.Invalid, "%q: a path must not hold a zero byte", p)
	}
	if !path.IsAbs(p) {
		return path.Join("output", p), nil
	}
	rel, ok := strings.CutPrefix(path.Clean(p), d.at+"/")
	if !ok {
		return "", diag.Errorf(diag.Invalid, "%q: is not below %s", p, d.at)
	}
	return rel, nil
}

// open opens a regular file, or a directory, by its path below the directory.
func (d *outputDir) open(rel string, wantDir bool) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(d.fd, rel, &how)
	for err == unix.EINTR || err == unix.EAGAIN {
		fd, err = unix.Openat2(d.fd, rel, &how)
	}
	if err == unix.ELOOP {
		return nil, diag.Errorf(diag.Invalid, "%s is, or lies below, a symlink", rel)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	kind := st.Mode & unix.S_IFMT
	if err == nil && wantDir && kind != unix.S_IFDIR {
		err = diag.Errorf(diag.Invalid, "%s is not a directory", rel)
	}
	if err == nil && !wantDir && kind != unix.S_IFREG {
		err = diag.Errorf(diag.Invalid, "%s is not a regular file", rel)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// read reads a small file. A missing one is fs.ErrNotExist.
func (d *outputDir) read(rel string) ([]byte, error) {
	f, err := d.open(rel, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = diag.Errorf(diag.Exhausted, "%s is larger than %d MiB", path.Base(rel), maxManifest>>20)
	}
	return b, err
}

// blobs lists the digests below output/blobs/sha256.
func (d *outputDir) blobs() []string {
	f, err := d.open("output/blobs/sha256", true)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxEntries)
	return names
}

// decode reads JSON that people write: a field that does not exist is an error.
func decode(data []byte, v any) error {
	if err := (strictjson.Limits{}).Check(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the value")
		}
	}
	if err != nil {
		return diag.Errorf(diag.Invalid, "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// record makes the tree that holds what was verified.
func (s *sealing) record(ctx context.Context, sealed *image.Sealed) (tree.Tree, error) {
	data, err := json.Marshal(sealed)
	if err != nil {
		return nil, err
	}
	if len(data) > image.MaxSealed {
		return nil, diag.Errorf(diag.Exhausted, "the names, histories and annotations have %d bytes, more than %d", len(data), image.MaxSealed)
	}
	draft, err := s.Store.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(draft.Dir, image.SealedPath), data, 0o644); err != nil {
		draft.Discard()
		return nil, err
	}
	return tree.NewDraftStack(s.Store, nil, draft, store.LayerInfo{ID: draft.ID, Size: int64(len(data)), Files: 1}), nil
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
