package sandbox

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bundles are where systems keep the certificates that programs trust. The first one that an image has is the one that counts.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

// What stands around the certificate in a bundle. The words are BuildKit's: steps may look for them.
const (
	trustBegin = "\n# buildkit proxy CA begin\n"
	trustEnd   = "# buildkit proxy CA end\n"
)

// maxBundle bounds the bytes of a bundle.
const maxBundle = 10 << 20

// trust makes programs in a root file system trust a certificate. Undo takes it away again, wherever in the bundle it is by then;
// all else that was done to the bundle stays.
func trust(rootfs string, cert []byte) (undo func() error, err error) {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, err
	}
	b := &bundleFile{root: root}
	for _, name := range bundles {
		p, err := resolve(rootfs, name)
		if err != nil {
			continue
		}
		if st, err := root.Lstat(p[1:]); err == nil && st.Mode().IsRegular() {
			b.name = p[1:]
			break
		}
	}
	if b.name == "" {
		return root.Close, nil // nothing to add to
	}
	old, st, err := b.read()
	if err == nil {
		err = b.write([]byte(string(old)+trustBegin+string(cert)+trustEnd), st)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return func() error { return errors.Join(b.clean(cert, old, st), root.Close()) }, nil
}

// bundleFile is a file of certificates.
type bundleFile struct {
	root *os.Root
	name string
}

func (b *bundleFile) read() ([]byte, fs.FileInfo, error) {
	// Not to block on what a step put there, nor to open a device or what a link leads to. The step has ended by now.
	if st, err := b.root.Lstat(b.name); err != nil {
		return nil, nil, err
	} else if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", b.name)
	}
	f, err := b.root.OpenFile(b.name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", b.name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if len(data) > maxBundle {
		err = fmt.Errorf("%s exceeds %d bytes", b.name, maxBundle)
	}
	return data, st, err
}

// write replaces the file, with its owner, permissions and time.
func (b *bundleFile) write(data []byte, st fs.FileInfo) error {
	dir, err := b.root.Lstat(filepath.Dir(b.name))
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(b.name), ".strata-ca")
	if err := b.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.root.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner", b.name)
	}
	err = errors.Join(b.root.Lchown(tmp, int(sys.Uid), int(sys.Gid)), b.root.Chmod(tmp, st.Mode()), b.root.Chtimes(tmp, st.ModTime(), st.ModTime()))
	if err == nil {
		err = b.root.Rename(tmp, b.name)
	}
	if err != nil {
		return errors.Join(err, b.root.Remove(tmp))
	}
	return b.root.Chtimes(filepath.Dir(b.name), dir.ModTime(), dir.ModTime())
}

// clean takes a certificate out. A bundle that nobody else has changed becomes what it was.
func (b *bundleFile) clean(cert, was []byte, then fs.FileInfo) error {
	now, st, err := b.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(now), trustBegin+string(cert)+trustEnd, "")
	text = withoutCert(strings.ReplaceAll(text, string(cert), ""), cert) // tools write bundles anew
	switch {
	case text == string(now):
		return nil
	case bytes.Equal([]byte(text), was):
		st = then
	}
	return b.write([]byte(text), st)
}

// withoutCert leaves out the blocks of PEM that hold a certificate, however they are written: tools change the ends and
// the length of lines.
func withoutCert(text string, cert []byte) string {
	ours, _ := pem.Decode(cert)
	if ours == nil {
		return text
	}
	const begin = "-----BEGIN "
	var out strings.Builder
	for {
		i := strings.Index(text, begin)
		if i < 0 {
			out.WriteString(text)
			return out.String()
		}
		out.WriteString(text[:i])
		text = text[i:]
		n := len(begin) // of what is no block
		end := strings.Index(text[n:], begin)
		if end < 0 {
			end = len(text) - n
		}
		// Only up to the next beginning: a block without an end must not take another one along.
		block, rest := pem.Decode([]byte(text[:n+end]))
		if block != nil {
			n = n + end - len(rest)
		}
		if block == nil || !bytes.Equal(block.Bytes, ours.Bytes) {
			out.WriteString(text[:n])
		}
		text = text[n:]
	}
}
