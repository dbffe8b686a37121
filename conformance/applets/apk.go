package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// mirror is where bundles come from: the harness stands in for this host.
const mirror = "http://dl-cdn.alpinelinux.org/"

// apk update, apk add NAME…: fetches a bundle of files and unpacks it at the root.
func apk(args []string) error {
	_, rest := parse(args, "")
	if len(rest) == 0 {
		return errors.New("usage: apk update | apk add NAME…")
	}
	if rest[0] == "update" {
		resp, err := http.Get(mirror)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if rest[0] != "add" {
		return fmt.Errorf("%s is not known here", rest[0])
	}
	for _, name := range rest[1:] {
		if err := add(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("Installing %s\n", name)
	}
	return nil
}

func add(name string) error {
	resp, err := http.Get(mirror + "apk/" + name)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("no such package")
	}
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpack(h, r); err != nil {
			return err
		}
	}
}

func unpack(h *tar.Header, r io.Reader) error {
	name := filepath.Join("/", h.Name)
	if h.Typeflag == tar.TypeDir {
		return os.MkdirAll(name, 0o755)
	}
	// Another program may stand there, or a link to busybox.
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return os.Symlink(h.Linkname, name)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, os.FileMode(h.Mode).Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, h.ModTime)
}
