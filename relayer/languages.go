package relayer

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"net/textproto"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/strictjson"
)

// python finds installed distributions. Source: PyPA specifications, "Recording installed projects" and "Core metadata".
type python struct{}

func (python) Name() string { return "python" }

var pyNormal = regexp.MustCompile(`[-_.]+`)

func pyName(s string) string { return "pip:" + strings.ToLower(pyNormal.ReplaceAllString(s, "-")) }

func (python) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	var out []Component
	room := newNameBudget()
	for e := range fs.Entries() {
		dir, base := path.Split(e.Path)
		if e.Type != layer.File || base != "RECORD" || !strings.HasSuffix(dir, ".dist-info/") {
			continue
		}
		site := path.Dir(path.Clean(dir))
		name, _, _ := strings.Cut(strings.TrimSuffix(path.Base(dir), ".dist-info"), "-")
		c := Component{Name: pyName(name), Dirs: []string{dir}}
		data, err := fs.ReadFile(e.Path, maxList)
		if err != nil {
			return nil, err
		}
		rows := csv.NewReader(strings.NewReader(string(data)))
		rows.FieldsPerRecord = -1
		for {
			row, err := rows.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, diag.Errorf(diag.Invalid, "%s: %w", e.Path, err)
			}
			p := row[0]
			if !path.IsAbs(p) {
				p = path.Join("/", site, p)
			}
			if !room.take(len(p)) {
				return nil, room.err()
			}
			c.Paths = append(c.Paths, clean(p))
			if dir, file := path.Split(clean(p)); strings.HasSuffix(file, ".py") { // compiled ones need not be recorded
				c.Homes = append(c.Homes, dir)
			}
		}
		meta, err := read(fs, dir+"METADATA", maxList)
		if err != nil {
			return nil, err
		}
		h, _ := textproto.NewReader(bufio.NewReader(strings.NewReader(string(meta)))).ReadMIMEHeader() // what is there until an error
		for _, r := range h["Requires-Dist"] {
			if !strings.Contains(r, "extra ==") {
				c.Needs = append(c.Needs, pyName(firstWord(r)))
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// node finds the packages of node_modules directories, those of pnpm's store too. Source: Node.js "Modules: Packages",
// pnpm "Symlinked node_modules structure".
type node struct{}

func (node) Name() string { return "node" }

func (node) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	type module struct {
		dir, name string
		needs     []string
	}
	var all []module
	at := map[string]string{} // directory -> component
	room := newNameBudget()
	for e := range fs.Entries() {
		dir, base := path.Split(e.Path)
		dir = path.Clean(dir)
		if e.Type != layer.File || base != "package.json" || !isModule(dir) {
			continue
		}
		data, err := fs.ReadFile(e.Path, maxList)
		if err != nil {
			return nil, err
		}
		if !room.take(len(data) / 16) { // they may be links to one file; little of each is kept
			return nil, room.err()
		}
		var m struct {
			Name, Version string
			Dependencies  map[string]string
			Optional      map[string]string `json:"optionalDependencies"`
		}
		if strictjson.Unmarshal(data, &m) != nil || m.Name == "" {
			continue // a file of that name, not a package
		}
		x := module{dir: dir, name: "npm:" + m.Name + "@" + m.Version}
		for n := range m.Dependencies {
			x.needs = append(x.needs, n)
		}
		for n := range m.Optional {
			x.needs = append(x.needs, n)
		}
		for _, n := range x.needs {
			room.take(len(n))
		}
		slices.Sort(x.needs)
		at[dir] = x.name
		all = append(all, x)
	}
	var out []Component
	for _, m := range all {
		c := Component{Name: m.name, Family: family(m.name), Dirs: []string{m.dir}}
		for _, n := range m.needs {
			if to := required(fs, at, m.dir, n); to != "" && to != m.name {
				c.Needs = append(c.Needs, to)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// isModule reports whether a directory is a package's in node_modules: node_modules/NAME or node_modules/@SCOPE/NAME.
func isModule(dir string) bool {
	up := path.Dir(dir)
	if strings.HasPrefix(path.Base(up), "@") {
		up = path.Dir(up)
	}
	return path.Base(up) == "node_modules"
}

// required finds a module as require does: in node_modules of the directory and of all above it.
func required(fs *layer.FS, at map[string]string, from, name string) string {
	for d := from; ; d = path.Dir(d) {
		p := path.Join(d, "node_modules", name)
		if path.Base(d) == "node_modules" {
			p = path.Join(d, name)
		}
		if real, err := fs.Resolve(p); err == nil && at[real] != "" {
			return at[real]
		}
		if d == "." {
			return ""
		}
	}
}
