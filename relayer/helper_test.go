package relayer

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/layer"
)

// tree makes a file system: "path" -> content, "path/" for a directory, "-> target" for a symlink, "= path" for a hard link.
func tree(t *testing.T, files map[string]string) *layer.FS {
	t.Helper()
	var dirs, entries []*layer.Entry
	for _, p := range slices.Sorted(maps.Keys(files)) {
		text := files[p]
		e := &layer.Entry{Path: strings.TrimSuffix(p, "/"), Type: layer.File, Mode: 0o644, ModTime: time.Unix(1000, 0)}
		switch {
		case strings.HasSuffix(p, "/"):
			e.Type, e.Mode = layer.Dir, 0o750
			dirs = append(dirs, e)
			continue
		case strings.HasPrefix(text, "-> "):
			e.Type, e.Link = layer.Symlink, text[3:]
		case strings.HasPrefix(text, "= "):
			e.Type, e.Link = layer.HardLink, text[2:]
		default:
			e.Size = int64(len(text))
			e.Open = func() (io.ReadCloser, error) { return content{bytes.NewReader([]byte(text))}, nil }
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b *layer.Entry) int { return order(a) - order(b) })
	fs := layer.NewFS()
	if err := fs.Add(append(dirs, entries...)); err != nil {
		t.Fatal(err)
	}
	return fs
}

// order: symlinks before what may lead through them, hard links after their files.
func order(e *layer.Entry) int {
	switch e.Type {
	case layer.Symlink:
		return 0
	case layer.HardLink:
		return 2
	}
	return 1
}

type content struct{ *bytes.Reader }

func (content) Close() error { return nil }

// found asks a generator, and describes components by name.
func found(t *testing.T, g Generator, fs *layer.FS) map[string]Component {
	t.Helper()
	list, err := g.Find(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Component{}
	for _, c := range list {
		if old, ok := out[c.Name]; ok {
			c.Paths, c.Dirs, c.Needs = append(old.Paths, c.Paths...), append(old.Dirs, c.Dirs...), append(old.Needs, c.Needs...)
		}
		out[c.Name] = c
	}
	return out
}

// cut runs Split, and returns for each layer its components and its files, directories left out.
func cut(t *testing.T, fs *layer.FS, opt Options) []Layer {
	t.Helper()
	layers, err := Split(context.Background(), fs, opt)
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

func files(l Layer) string {
	var out []string
	for _, e := range l.Entries {
		if e.Type != layer.Dir {
			out = append(out, e.Path)
		}
	}
	return strings.Join(out, " ")
}

// where returns the files of the layer with a component.
func where(t *testing.T, layers []Layer, name string) string {
	t.Helper()
	for _, l := range layers {
		if slices.Contains(l.Components, name) {
			return files(l)
		}
	}
	t.Errorf("no layer has %s", name)
	return ""
}

// digests returns the diff_ids of layers by name.
func digests(t *testing.T, layers []Layer) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, l := range layers {
		v, err := layer.NewVirtual(t.Context(), l.Entries, layer.TarOptions{AllXattrs: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		out[l.Name] = v.DiffID.String()
	}
	return out
}

func planOf(t *testing.T, layers []Layer) Plan {
	t.Helper()
	var notes []map[string]string
	for _, l := range layers {
		notes = append(notes, l.Annotations())
	}
	p, err := ReadPlan(notes)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
