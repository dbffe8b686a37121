package pack

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/strata-build/strata/layer"
)

func textEntry(path, content string) *layer.Entry {
	return &layer.Entry{Path: path, Type: layer.File, Mode: 0o644, Size: int64(len(content)), ModTime: epoch, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

func dirEntry(path string, mode uint32) *layer.Entry {
	return &layer.Entry{Path: path, Type: layer.Dir, Mode: mode, ModTime: epoch}
}

func linkEntry(path, to string) *layer.Entry {
	return &layer.Entry{Path: path, Type: layer.Symlink, Link: to, ModTime: epoch}
}

// The parent is like a merged-usr Debian: what goes onto it never replaces /bin, nor changes /tmp and /root.
func TestOnto(t *testing.T) {
	parent := []*layer.Entry{
		linkEntry("bin", "usr/bin"), linkEntry("abs", "/usr/bin"), linkEntry("loop", "loop"), linkEntry("gone", "var/none"), dirEntry("root", 0o700),
		dirEntry("tmp", 0o1777), dirEntry("usr", 0o755), dirEntry("usr/bin", 0o755), textEntry("usr/bin/sh", "sh"), textEntry("file", "old"),
	}
	first := textEntry("bin/sh", "new")
	hard := &layer.Entry{Path: "bin/sh2", Type: layer.HardLink, Link: "bin/sh", ModTime: epoch}
	for _, tc := range []struct {
		name string
		add  []*layer.Entry
		want map[Conflict]string // paths of the layer, or "!" and a part of the error
	}{
		{"below a symlink", []*layer.Entry{dirEntry("bin", 0o755), textEntry("bin/f", "1")}, map[Conflict]string{
			Follow: "usr/bin/f", Keep: "usr/bin/f", Refuse: "!symlink to usr/bin", Replace: "bin bin/f",
		}},
		{"below an absolute symlink", []*layer.Entry{dirEntry("abs", 0o755), dirEntry("abs/d", 0o700), textEntry("abs/d/f", "1")}, map[Conflict]string{
			Follow: "usr/bin/d usr/bin/d/f",
		}},
		{"below a symlink to nothing", []*layer.Entry{dirEntry("gone", 0o755), textEntry("gone/f", "1")}, map[Conflict]string{Follow: "var/none var/none/f"}},
		{"below a symlink to itself", []*layer.Entry{dirEntry("loop", 0o755), textEntry("loop/f", "1")}, map[Conflict]string{Follow: "!symlinks"}},
		{"in directories with modes", []*layer.Entry{dirEntry("root", 0o755), textEntry("root/f", "1"), dirEntry("tmp", 0o755), dirEntry("tmp/d", 0o750)}, map[Conflict]string{
			Follow: "root/f tmp/d", Keep: "root/f tmp/d", Refuse: "root/f tmp/d", Replace: "root root/f tmp tmp/d",
		}},
		{"another file", []*layer.Entry{textEntry("file", "new")}, map[Conflict]string{Follow: "file", Keep: "", Refuse: "!another file", Replace: "file"}},
		{"the same file", []*layer.Entry{textEntry("file", "old")}, map[Conflict]string{Follow: "file", Keep: "", Refuse: ""}},
		{"a file for a directory", []*layer.Entry{textEntry("usr", "x")}, map[Conflict]string{Follow: "!has a directory", Keep: "", Refuse: "!has a directory", Replace: "usr"}},
		{"a directory for a file", []*layer.Entry{dirEntry("file", 0o755), textEntry("file/f", "x")}, map[Conflict]string{
			Follow: "!not a directory", Keep: "", Refuse: "!not a directory", Replace: "file file/f",
		}},
		{"hard links", []*layer.Entry{dirEntry("bin", 0o755), first, hard}, map[Conflict]string{Follow: "usr/bin/sh usr/bin/sh2", Keep: "usr/bin/sh2"}},
		{"a whiteout makes room", []*layer.Entry{{Path: ".wh.bin", Type: layer.File}, dirEntry("bin", 0o755), textEntry("bin/f", "1")}, map[Conflict]string{
			Follow: "bin bin/.wh..wh..opq bin/f",
		}},
	} {
		for how, want := range tc.want {
			t.Run(fmt.Sprintf("%s, %s", tc.name, how), func(t *testing.T) {
				w := workspace(t, Options{})
				im := Assemble(nil, []*Layer{NewLayer("parent", parent, layer.TarOptions{})}, Change{})
				got, err := w.Onto(t.Context(), im, tc.add, how)
				if part, bad := strings.CutPrefix(want, "!"); bad {
					if err == nil || !strings.Contains(err.Error(), part) {
						t.Fatalf("%v, want %q", err, part)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				var paths []string
				for _, e := range got {
					paths = append(paths, e.Path)
				}
				if strings.Join(paths, " ") != want {
					t.Errorf("%q, want %q", paths, want)
				}
			})
		}
	}
}
