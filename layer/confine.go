package layer

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/restrict"
)

// confined runs f where the kernel lets it open and change what is in the target, and read the directories read, and nothing else
// (restrict.Dirs.Run): a name that leads out of the target in spite of all checks leads nowhere. It closes the target.
func (t *target) confined(read []string, f func() error) error {
	root, err := unix.FcntlInt(uintptr(t.root.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return errors.Join(sysError("open", t.root.path, err), t.close())
	}
	dir := os.NewFile(uintptr(root), "the layer's directory")
	defer dir.Close()
	err = restrict.Dirs{Write: dir, Read: read}.Run(func() error {
		err := f()
		if cerr := t.close(); err == nil {
			err = cerr
		}
		return err
	})
	_ = t.close() // closes what is open if nothing was run
	return err
}

// handedOver is a stream that is read by other goroutines: its Read only takes what they have read, and so needs no rights.
// Close stops them.
func handedOver(r io.Reader) io.ReadCloser {
	switch r := r.(type) {
	case *ahead:
		return notClosed{r}
	case *DigestReader:
		return notClosed{r}
	case *ReadAhead:
		return notClosed{r}
	}
	return NewReadAhead(r)
}

// notClosed is a stream that somebody else closes.
type notClosed struct{ io.Reader }

func (notClosed) Close() error { return nil }
