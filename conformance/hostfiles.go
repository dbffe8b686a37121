package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// bundles are the packages that the stand-in apk can add: their names in Alpine and the Debian packages whose files stand
// in for them. A bundle is a gzipped tar of the packages' files and of the libraries that their programs need.
var bundles = map[string][]string{
	"curl":                   {"curl"},
	"git":                    {"git"},
	"openssh":                {"openssh-client"},
	"openssh-client-default": {"openssh-client"},
	"e2fsprogs":              {"e2fsprogs"},
	"fuse":                   {"fuse3"},
}

// makeBundle collects the files of installed Debian packages.
func makeBundle(packages []string) ([]byte, error) {
	out, err := exec.Command("dpkg", append([]string{"-L"}, packages...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("files of the Debian packages %v: %w (make conformance installs them)", packages, err)
	}
	names := map[string]bool{}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		info, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(name, "/usr/share/") && !strings.HasPrefix(name, "/usr/share/git-core") {
			continue
		}
		if err != nil {
			return nil, err
		}
		if target, err := os.Stat(name); err == nil && target.IsDir() {
			continue // /bin may be a link to /usr/bin
		}
		if info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0 {
			names[name] = true
		}
	}
	for name := range names {
		if err := addLibraries(names, name); err != nil {
			return nil, err
		}
	}
	entries, err := hostEntries(names)
	if err != nil {
		return nil, err
	}
	raw, err := layerTar(entries)
	if err != nil {
		return nil, err
	}
	return compress(raw), nil
}

// addLibraries adds the dynamic linker and the libraries that a program needs.
func addLibraries(names map[string]bool, program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return nil //nolint:nilerr // not a program
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) == 0 {
		return nil //nolint:nilerr // a static one
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	for line := range bytes.Lines(out) {
		// "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "\t/lib64/ld-linux-x86-64.so.2 (0x…)"
		for _, field := range strings.Fields(string(line)) {
			if strings.HasPrefix(field, "/") {
				names[field] = true
			}
		}
	}
	return nil
}

// hostEntries reads files of this machine. A library's name may be a link; its content is stored under the name that is
// asked for.
func hostEntries(names map[string]bool) ([]entry, error) {
	var entries []entry
	dirs := map[string]bool{}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	for _, name := range sorted {
		rel := strings.TrimPrefix(path.Clean(name), "/")
		entries = append(entries, parents(dirs, rel)...)
		info, err := os.Lstat(name)
		if err != nil {
			return nil, err
		}
		if info.Mode()&fs.ModeSymlink != 0 && !strings.Contains(name, ".so") {
			target, err := os.Readlink(name)
			if err != nil {
				return nil, err
			}
			entries = append(entries, entry{path: rel, symlink: target})
			continue
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{path: rel, mode: int64(info.Mode().Perm()) | 0o444, content: content})
	}
	return entries, nil
}

// parents gives the directories above a path that dirs does not have yet, and adds them.
func parents(dirs map[string]bool, name string) []entry {
	var out []entry
	for d := filepath.Dir(name); d != "." && !dirs[d]; d = filepath.Dir(d) {
		dirs[d] = true
		out = append(out, entry{path: d + "/", mode: 0o755})
	}
	slices.Reverse(out)
	return out
}
