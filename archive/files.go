package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// Files is a read-only set of named files: a directory, or a tar that was indexed. Names are clean and relative.
type Files interface {
	Open(name string) (File, int64, error) // regular files, through links; NotFound else
	Names() []string                       // sorted
	Close() error
}

// File is an opened file.
type File interface {
	io.Reader
	io.ReaderAt
	io.Closer
}

// What an archive of images may have: files, links on the way to one, bytes of a name, layers of an image. Reading an
// archive must not take longer than its size explains.
const (
	maxFiles  = 1_000_000
	maxHops   = 40
	maxName   = 4096
	maxLayers = 4096
)

// TempDir makes a directory for files of the time being; cleanup removes it.
type TempDir func(prefix string) (dir string, cleanup func(), err error)

// openFiles opens a directory or an archive. A compressed archive, or a stream, is first written to a temporary file:
// the documents that say what is in it may come last.
func openFiles(ctx context.Context, location string, r io.Reader, temp TempDir) (Files, error) {
	if r == nil {
		info, err := os.Stat(location)
		if err != nil {
			return nil, diag.Errorf(diag.NotFound, "cannot read the image: %w", err)
		}
		if info.IsDir() {
			return openDir(location)
		}
		f, err := openRegular(location)
		if err != nil {
			return nil, err
		}
		_, t, err := layer.Decompress(io.NewSectionReader(f, 0, info.Size()))
		if err == nil && t == layer.Uncompressed {
			return indexTar(f, info.Size(), func() { f.Close() })
		}
		defer f.Close()
		r = f
	}
	dir, cleanup, err := temp("import")
	if err != nil {
		return nil, err
	}
	plain, _, err := layer.Decompress(r)
	if err != nil {
		cleanup()
		return nil, err
	}
	defer plain.Close()
	f, err := os.OpenFile(filepath.Join(dir, "tar"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		cleanup()
		return nil, err
	}
	n, err := io.Copy(f, &Cancelable{ctx, plain})
	if err != nil && !(diag.KindOf(err) == diag.Invalid && endsLikeTar(f, n)) { // bytes behind a compressed tar do not matter
		f.Close()
		cleanup()
		return nil, diag.Errorf(diag.KindOf(err), "reading the archive: %w", err)
	}
	return indexTar(f, n, func() { f.Close(); cleanup() })
}

// endsLikeTar reports whether the first n bytes of a file end with the mark of a tar's end: two blocks of zeros.
func endsLikeTar(f io.ReaderAt, n int64) bool {
	end := make([]byte, 1024)
	if n < int64(len(end)) || n%512 != 0 {
		return false
	}
	_, err := f.ReadAt(end, n-int64(len(end)))
	return err == nil && bytes.Count(end, []byte{0}) == len(end)
}

// Cancelable is a reader that ends with its context.
type Cancelable struct {
	Ctx context.Context
	io.Reader
}

func (c *Cancelable) Read(p []byte) (int, error) {
	if c.Ctx.Err() != nil {
		return 0, context.Cause(c.Ctx)
	}
	return c.Reader.Read(p)
}

// openRegular opens a regular file and never blocks on a FIFO.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "cannot read the image: %w", err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, diag.Errorf(diag.Invalid, "%s is no regular file", name)
	}
	return f, nil
}

// dirFiles is a directory.
type dirFiles struct {
	root *os.Root
	list []string
}

func openDir(dir string) (Files, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "cannot read the image: %w", err)
	}
	d := &dirFiles{root: root}
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			d.list = append(d.list, p)
		}
		if len(d.list) > maxFiles {
			return diag.Errorf(diag.Exhausted, "%s has more than %d files", dir, maxFiles)
		}
		return nil
	})
	if err != nil {
		root.Close()
		return nil, diag.Errorf(diag.KindOf(err), "cannot read the image: %w", err)
	}
	slices.Sort(d.list)
	return d, nil
}

func (d *dirFiles) Names() []string { return d.list }
func (d *dirFiles) Close() error    { return d.root.Close() }

// hexName matches what is named by its digest.
var hexName = regexp.MustCompile(`(^|/)[0-9a-f]{64}$`)

func (d *dirFiles) Open(name string) (File, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil && hexName.MatchString(name) && !errors.Is(err, fs.ErrNotExist) {
		// A blob may be a link to elsewhere: who reads it knows its digest and so its content. Documents may not.
		f, err = os.OpenFile(filepath.Join(d.root.Name(), name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, 0, diag.Errorf(diag.NotFound, "the image has no %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, 0, diag.Errorf(diag.Invalid, "%s is no regular file", name)
	}
	return f, info.Size(), nil
}

// tarFiles is a tar whose entries were located.
type tarFiles struct {
	at    io.ReaderAt
	size  int64
	close func()
	list  []string
	data  map[string][2]int64 // offset and size
	links map[string]string   // name -> clean target
}

func indexTar(at io.ReaderAt, size int64, closeIt func()) (Files, error) {
	t := &tarFiles{at: at, size: size, close: closeIt, data: map[string][2]int64{}, links: map[string]string{}}
	if err := t.index(io.NewSectionReader(at, 0, size)); err != nil {
		closeIt()
		return nil, err
	}
	return t, nil
}

func (t *tarFiles) index(in *io.SectionReader) error {
	r := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) && t.size >= 512 { // a header's length: less holds no entry
				return diag.Errorf(diag.Invalid, "the archive is cut off: its %d bytes end within the entry after %d others", t.size, n).
					WithHint("copy or download it again")
			}
			return diag.Errorf(diag.Invalid, "this is not a tar archive: %w", err)
		}
		if n > maxFiles {
			return diag.Errorf(diag.Exhausted, "the archive has more than %d entries", maxFiles)
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return diag.Errorf(diag.Invalid, "the archive has a name of more than %d bytes", maxName)
		}
		name := CleanName(h.Name)
		delete(t.data, name) // the last entry of a name counts
		delete(t.links, name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The tar reader does not buffer: the section stands at the entry's first byte.
			off, err := in.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			t.data[name] = [2]int64{off, h.Size}
		case tar.TypeLink:
			t.links[name] = CleanName(h.Linkname)
		case tar.TypeSymlink:
			target := h.Linkname
			if !path.IsAbs(target) {
				target = path.Join(path.Dir("/"+name), target)
			}
			t.links[name] = CleanName(target)
		default:
			continue
		}
		t.list = append(t.list, name)
	}
	slices.Sort(t.list)
	t.list = slices.Compact(t.list)
	return nil
}

// CleanName makes "./a", "/a" and "a/" one name; nothing leads above the top.
func CleanName(s string) string {
	return strings.TrimPrefix(path.Clean("/"+s), "/")
}

func (t *tarFiles) Names() []string { return t.list }

func (t *tarFiles) Close() error {
	t.close()
	return nil
}

func (t *tarFiles) Open(name string) (File, int64, error) {
	at := t.follow(name)
	d, ok := t.data[at]
	if !ok {
		return nil, 0, diag.Errorf(diag.NotFound, "the archive has no %s", name)
	}
	return section{io.NewSectionReader(t.at, d[0], d[1])}, d[1], nil
}

// follow resolves links, those of directories on the way too.
func (t *tarFiles) follow(name string) string {
	for range maxHops {
		next, ok := t.links[name]
		if !ok {
			for dir := path.Dir(name); dir != "." && !ok; dir = path.Dir(dir) {
				var target string
				if target, ok = t.links[dir]; ok {
					next = CleanName(target + strings.TrimPrefix(name, dir))
				}
			}
		}
		if !ok {
			return name
		}
		if name = next; len(name) > maxName {
			break
		}
	}
	return ""
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// ReadFile returns a small file.
func ReadFile(f Files, name string, limit int64) ([]byte, error) {
	r, size, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, the limit is %d", name, size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

func has(f Files, name string) bool {
	r, _, err := f.Open(name)
	if err != nil {
		return false
	}
	_ = r.Close()
	return true
}

// Tar returns the archive's own bytes, uncompressed, if it is a tar with anything in it.
func (a *Archive) Tar() (*io.SectionReader, error) {
	t, ok := a.Files.(*tarFiles)
	if !ok {
		return nil, diag.Errorf(diag.Invalid, "the directory holds no image").WithHint("a root file system is imported from a tar archive")
	}
	if len(t.list) == 0 {
		return nil, diag.Errorf(diag.Invalid, "the archive is empty")
	}
	return io.NewSectionReader(t.at, 0, t.size), nil
}
