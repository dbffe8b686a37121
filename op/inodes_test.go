package op

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/tree"
)

// A modelTree is what a tree must look like: layers, bottom first, in which each path has a file or, as nil, a whiteout. Names of one
// file in one layer are hard links; across layers there are none.
type modelTree struct {
	layers []map[string]*modelFile
	stack  *tree.Stack
}

type modelFile struct{ text string }

func (m *modelTree) seen() map[string]*modelFile {
	out := map[string]*modelFile{}
	for _, l := range m.layers {
		for p, f := range l {
			if out[p] = f; f == nil {
				delete(out, p)
			}
		}
	}
	return out
}

// inodeWorld makes trees in all the ways in which layers come to share files.
type inodeWorld struct {
	*fileBed
	r     *rand.Rand
	large bool // files are large enough to be shared
	n     int
	trees []*modelTree
	log   []string
}

func (w *inodeWorld) pick() *modelTree { return w.trees[w.r.IntN(len(w.trees))] }

func (w *inodeWorld) name() string { return fmt.Sprintf("d%d/f%d", w.r.IntN(2), w.r.IntN(3)) }

func (w *inodeWorld) add(layers []map[string]*modelFile, st *tree.Stack) {
	w.trees = append(w.trees, &modelTree{layers: layers, stack: st})
}

// write is a step that makes, links and removes files.
func (w *inodeWorld) write() {
	base := w.pick()
	below, now, layer := base.seen(), base.seen(), map[string]*modelFile{}
	script := "mkdir -p d0 d1\n"
	put := func(p string, f *modelFile) { now[p], layer[p] = f, f }
	for range 1 + w.r.IntN(3) {
		p, q := w.name(), w.name()
		switch f := now[p]; {
		case f == nil || w.r.IntN(3) == 0:
			w.n++
			text := fmt.Sprintf("%d\n", w.n)
			script += fmt.Sprintf("rm -f %s; printf '%s' > %[1]s\n", p, strings.TrimSpace(text)+`\n`)
			if w.large {
				script += "truncate -s 16M " + p + "\n"
			}
			put(p, &modelFile{text})
		case p == q || w.r.IntN(4) == 0:
			script += "rm " + p + "\n"
			delete(now, p)
			if delete(layer, p); below[p] != nil {
				layer[p] = nil // a whiteout
			}
		default:
			// Linking copies a file of a layer below up, under the one name by which it is linked.
			if layer[p] != f {
				f = &modelFile{f.text}
				put(p, f)
			}
			script += fmt.Sprintf("rm -f %s; ln %s %[1]s\n", q, p)
			put(q, f)
		}
	}
	w.log = append(w.log, "write: "+strings.ReplaceAll(script, "\n", "; "))
	w.add(append(slices.Clone(base.layers), layer), w.script(base.stack, script))
}

// copy copies a file or a directory of one tree onto another.
func (w *inodeWorld) copy() {
	from, base := w.pick(), w.pick()
	src := w.name()
	if w.r.IntN(2) == 0 {
		src = path.Dir(src)
	}
	dest := src
	if w.r.IntN(2) == 0 {
		if dest = path.Dir(w.name()); path.Dir(src) != "." {
			dest = w.name()
		}
	}
	layer, copies := map[string]*modelFile{}, map[*modelFile]*modelFile{}
	for p, f := range from.seen() {
		rest, ok := strings.CutPrefix(p, src)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if copies[f] == nil {
			copies[f] = &modelFile{f.text}
		}
		layer[dest+rest] = copies[f]
	}
	if len(layer) == 0 {
		return
	}
	c := graph.Copy{Src: "/" + src, Dest: "/" + dest, DirContents: path.Dir(src) == ".", CreateDest: true}
	w.log = append(w.log, fmt.Sprintf("copy %s to %s", src, dest))
	out, err := w.run([]tree.Tree{base.stack, from.stack}, graph.Action{In: 0, From: 1, Copy: &c})
	w.ok(err)
	st := out[0].(*tree.Stack)
	w.commit(st)
	w.add(append(slices.Clone(base.layers), layer), st)
}

func (w *inodeWorld) merged() {
	a, b := w.pick(), w.pick()
	w.log = append(w.log, "merge")
	st := w.merge(a.stack, b.stack)
	// Layers that both have stay once: what the upper tree begins with is what it is.
	w.add(append(slices.Clone(a.layers), b.layers...), st)
}

func (w *inodeWorld) squashed() {
	t := w.pick()
	keep := w.r.IntN(len(t.layers))
	if len(t.stack.IDs()) != len(t.layers) {
		return // a merge of trees that share layers
	}
	w.log = append(w.log, fmt.Sprint("squash ", keep))
	all := t.stack.IDs()
	st, err := tree.Squash(context.Background(), w.s, all[:keep], all[keep:])
	w.ok(err)
	if d, _ := st.Pending(); d != nil {
		w.commit(st)
	} else {
		w.t.Cleanup(st.Release)
	}
	top := map[string]*modelFile{}
	for _, l := range t.layers[keep:] {
		maps.Copy(top, l)
	}
	w.add(append(slices.Clone(t.layers[:keep]), top), st)
}

// check compares what a step would see of the latest tree with the model.
func (w *inodeWorld) check() {
	m := w.trees[len(w.trees)-1]
	v, err := m.stack.Open(context.Background())
	w.ok(err)
	defer v.Close()
	want := m.seen()
	byInode, byFile := map[uint64]string{}, map[*modelFile]uint64{}
	w.ok(filepath.WalkDir(v.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(v.Dir, p)
		f := want[rel]
		delete(want, rel)
		if f == nil {
			w.t.Fatalf("%s is there\n%s", rel, strings.Join(w.log, "\n"))
		}
		in, err := os.Open(p)
		w.ok(err)
		defer in.Close()
		text := make([]byte, len(f.text))
		if _, err := in.Read(text); err != nil || string(text) != f.text {
			w.t.Fatalf("%s holds %q, not %q: %v\n%s", rel, text, f.text, err, strings.Join(w.log, "\n"))
		}
		var st unix.Stat_t
		w.ok(unix.Lstat(p, &st))
		if other, ok := byFile[f]; ok && other != st.Ino {
			w.t.Fatalf("%s is no hard link of %s\n%s", rel, byInode[other], strings.Join(w.log, "\n"))
		} else if name, ok := byInode[st.Ino]; ok && byFile[f] != st.Ino {
			w.t.Fatalf("%s and %s are one file\n%s", rel, name, strings.Join(w.log, "\n"))
		}
		byFile[f], byInode[st.Ino] = st.Ino, rel
		if names := w.names(m, f); !w.large && int(st.Nlink) != names {
			w.t.Fatalf("%s has the link count %d, not %d\n%s", rel, st.Nlink, names, strings.Join(w.log, "\n"))
		}
		return nil
	}))
	if len(want) > 0 {
		w.t.Fatalf("missing: %v\n%s", slices.Sorted(maps.Keys(want)), strings.Join(w.log, "\n"))
	}
}

// names counts the names of a file in its layer, hidden ones included.
func (w *inodeWorld) names(m *modelTree, f *modelFile) int {
	most := 0
	for _, l := range m.layers {
		n := 0
		for _, g := range l {
			if g == f {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// TestSharedFilesStayApart: layers share files, and no step can tell: two names have one inode exactly if they are hard links in the layer
// that they come from, whatever was copied, linked, merged and squashed.
func TestSharedFilesStayApart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, large := range []bool{false, true} {
		for seed := range uint64(40) {
			t.Run(fmt.Sprintf("large=%v/%d", large, seed), func(t *testing.T) {
				w := &inodeWorld{fileBed: newFileBed(t), r: rand.New(rand.NewPCG(seed, 11)), large: large}
				first := w.script(nil, "mkdir -p d0 d1; echo 0 > d0/f0")
				w.add([]map[string]*modelFile{{"d0/f0": {"0\n"}}}, first)
				kinds := []func(){w.write, w.copy, w.copy, w.copy, w.merged}
				if large { // squashing links always: the link count can be seen
					kinds = append(kinds, w.squashed)
				}
				for range 16 {
					kinds[w.r.IntN(len(kinds))]()
					w.check()
				}
			})
		}
	}
}
