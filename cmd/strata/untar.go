package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// maxDockerfile bounds a Dockerfile on standard input, in bytes.
const maxDockerfile = 16 << 20

// unpackContext puts the build context that r holds into dir: a tar archive, compressed or not, or else the text of a
// Dockerfile, whose context is empty.
func unpackContext(r *bufio.Reader, dir string) error {
	plain, kind, err := layer.Decompress(r)
	if err != nil {
		return diag.Errorf(diag.Invalid, "the build context on standard input: %w", err)
	}
	defer plain.Close()
	b := bufio.NewReaderSize(plain, 64<<10)
	head, err := b.Peek(512)
	if len(head) == 0 {
		return diag.Errorf(diag.Invalid, "there is no build context on standard input").WithHint("send a tar archive or a Dockerfile")
	}
	if isTar := len(head) == 512 && string(head[257:262]) == "ustar" || len(head) == 512 && isZero(head); isTar {
		return untar(b, dir)
	}
	if kind != layer.Uncompressed || strings.IndexByte(string(head), 0) >= 0 {
		return diag.Errorf(diag.Invalid, "the build context on standard input is neither a tar archive nor a Dockerfile")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return diag.Errorf(diag.Invalid, "the build context on standard input: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(b, maxDockerfile))
	if err != nil {
		return diag.Errorf(diag.Invalid, "the Dockerfile on standard input: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600)
}

func isZero(b []byte) bool { return strings.Trim(string(b), "\x00") == "" }

// untar unpacks files, directories and links; the archive is the client's own, but nothing of it may land outside dir.
// Owners are not kept: COPY sets its own. Devices and pipes cannot be copied from a context and are left out.
func untar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return diag.Errorf(diag.Internal, "the build context: %w", err)
	}
	defer root.Close()
	times := map[string]time.Time{} // of directories, which writing into them changes
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return diag.Errorf(diag.Invalid, "the build context on standard input is no tar archive: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := untarEntry(root, name, h, tr); err != nil {
			return diag.Errorf(diag.Invalid, "the build context on standard input: %s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			times[name] = h.ModTime
		}
	}
	for name, t := range times {
		if err := root.Chtimes(name, t, t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diag.Errorf(diag.Internal, "the build context: %w", err)
		}
	}
	return nil
}

func untarEntry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, mode.Perm())
	case tar.TypeReg:
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		err = errors.Join(err, f.Chmod(mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)), f.Close())
		return errors.Join(err, root.Chtimes(name, h.ModTime, h.ModTime))
	case tar.TypeSymlink, tar.TypeLink:
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if h.Typeflag == tar.TypeSymlink {
			return root.Symlink(h.Linkname, name)
		}
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	}
	return nil
}
