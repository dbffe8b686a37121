package relayer

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// dpkg finds the source packages of Debian and its relatives. Sources: dpkg(1) FILES, deb-src-control(5); the status.d
// directory is that of distroless images.
type dpkg struct{}

func (dpkg) Name() string { return "dpkg" }

const dpkgDir = "var/lib/dpkg"

// deb is one installed binary package.
type deb struct {
	name, arch, source string
	version            string
	depends, provides  []string
	list               string // the file with its paths
}

func (dpkg) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	debs, err := installed(fs)
	if err != nil || len(debs) == 0 {
		return nil, err
	}
	diverted, err := diversions(fs)
	if err != nil {
		return nil, err
	}
	source := map[string]string{}
	for _, d := range debs {
		for _, p := range d.provides {
			if source[p] == "" {
				source[p] = d.source
			}
		}
	}
	for _, d := range debs { // a real package wins over a virtual one
		source[d.name] = d.source
	}
	var out []Component
	room, rates := newNameBudget(), sync.OnceValue(func() map[string]float64 { return debRates(fs, debs) })
	for _, d := range debs {
		c := Component{Name: "deb:" + d.source, Updates: func() float64 { return rates()[d.source] }}
		for _, n := range d.depends {
			if s := source[n]; s != "" && s != d.source {
				c.Needs = append(c.Needs, "deb:"+s)
			}
		}
		if err := d.files(fs, diverted, &c, room); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// installed reads the status files.
func installed(fs *layer.FS) ([]deb, error) {
	paths := []string{dpkgDir + "/status"}
	for _, n := range fs.ReadDir(dpkgDir + "/status.d") {
		if !strings.HasSuffix(n, ".md5sums") {
			paths = append(paths, dpkgDir+"/status.d/"+n)
		}
	}
	var out []deb
	for _, p := range paths {
		data, err := read(fs, p, maxDatabase)
		if err != nil {
			return nil, err
		}
		err = stanzas(data, func(m map[string]string) {
			words := strings.Fields(m["Status"])
			if m["Package"] == "" || p == paths[0] && (len(words) != 3 || words[2] == "config-files" || words[2] == "not-installed") {
				return
			}
			d := deb{name: m["Package"], arch: m["Architecture"], version: m["Version"]}
			d.source = cmp.Or(firstWord(m["Source"]), d.name)
			d.depends = append(names(m["Depends"]), names(m["Pre-Depends"])...)
			d.provides = names(m["Provides"])
			if p != paths[0] {
				d.list = p + ".md5sums"
			}
			out = append(out, d)
		})
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s: %w", p, err)
		}
	}
	return out, nil
}

// names reads a list of relations: "a (>= 1), b | c:any" is a, b, c.
func names(s string) []string {
	var out []string
	for _, alt := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == '|' }) {
		if n, _, _ := strings.Cut(firstWord(alt), ":"); n != "" {
			out = append(out, n)
		}
	}
	return out
}

// diversion says where a file of every package but one really is.
type diversion struct{ to, by string }

// diversions reads dpkg's list: three lines each, "from", "to" and the package that diverts, or ":" for the administrator.
func diversions(fs *layer.FS) (map[string]diversion, error) {
	data, err := read(fs, dpkgDir+"/diversions", maxList)
	lines := strings.Split(string(data), "\n")
	out := map[string]diversion{}
	for i := 0; i+2 < len(lines); i += 3 {
		out[clean(lines[i])] = diversion{clean(lines[i+1]), lines[i+2]}
	}
	return out, err
}

// files adds the paths of a package. What it lists and is a directory is a home.
func (d *deb) files(fs *layer.FS, diverted map[string]diversion, c *Component, room *nameBudget) error {
	lists := []string{d.list, dpkgDir + "/info/" + d.name + ".list", dpkgDir + "/info/" + d.name + ":" + d.arch + ".list"}
	at := slices.IndexFunc(lists, func(p string) bool { _, ok := fs.Lookup(p); return p != "" && ok })
	if at < 0 {
		return nil // a package without files
	}
	data, err := fs.ReadFile(lists[at], maxList)
	if err != nil {
		return err
	}
	if !room.take(len(data)) { // packages of one name have one list
		return room.err()
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if at == 0 { // md5sums: digest, two spaces, path
			_, line, _ = strings.Cut(line, "  ")
		}
		p := clean(line)
		if p == "" {
			continue
		}
		if v, ok := diverted[p]; ok && v.by != d.name {
			p = v.to
		}
		if !room.take(0) { // p is a part of the list
			return room.err()
		}
		if e, ok := fs.Lookup(p); ok && e.Type == layer.Dir {
			c.Homes = append(c.Homes, p)
			continue
		}
		c.Paths = append(c.Paths, p)
	}
	return nil
}
