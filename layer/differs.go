package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Differs compares the files of a layer's directory with the uncompressed tar that was unpacked there, and returns what the
// first file that differs is, or "". It looks at the content of regular files, which is where a disk's faults end up. Files
// that are not where the tar has them, because something later in the tar or in a lower layer moved or removed them, are
// passed over.
func Differs(ctx context.Context, r io.Reader, dir string) (string, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	// Two names may lead to one file: what the tar says last of it counts.
	want := map[fileID]expected{}
	buf := make([]byte, 256<<10)
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		sum, err := sumOf(t, buf)
		if err != nil {
			return "", err
		}
		name := path.Clean("/" + h.Name)
		if id, err := identify(root, name); err == nil {
			want[id] = expected{name, sum}
		}
	}
	for _, w := range want {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		f, err := openIn(root, w.name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", w.name, err)
		}
		sum, err := sumOf(f, buf)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("%s: %w", w.name, err)
		}
		if sum != w.sum {
			return "the content of " + w.name + " is not that of its blob", nil
		}
	}
	return "", nil
}

type fileID struct{ dev, ino uint64 }

type expected struct {
	name string
	sum  [sha256.Size]byte
}

func sumOf(r io.Reader, buf []byte) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, buf); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// openIn opens a regular file below root. Symbolic links do not lead out of it.
func openIn(root int, name string) (*os.File, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// identify tells which regular file a name leads to.
func identify(root int, name string) (fileID, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return fileID{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, unix.EISDIR
	}
	return fileID{st.Dev, st.Ino}, nil
}
