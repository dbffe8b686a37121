package relayer

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/layer"
)

// pacman finds the package bases of Arch Linux. Source: the local database, alpm-db-desc(5) and alpm-db-files(5).
type pacman struct{}

func (pacman) Name() string { return "pacman" }

func (pacman) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	const dir = "var/lib/pacman/local"
	type pkg struct {
		base    string
		depends []string
		c       Component
	}
	var all []pkg
	bases := map[string]string{}
	room := newNameBudget()
	for _, n := range fs.ReadDir(dir) {
		desc, err := read(fs, dir+"/"+n+"/desc", maxList)
		if err != nil {
			return nil, err
		}
		files, err := read(fs, dir+"/"+n+"/files", maxList)
		if err != nil {
			return nil, err
		}
		if !room.take(len(desc) + len(files)) { // they may be links to one file
			return nil, room.err()
		}
		m := sections(string(desc))
		name := first(m["NAME"])
		if name == "" {
			continue
		}
		p := pkg{base: cmp.Or(first(m["BASE"]), name), depends: m["DEPENDS"]}
		p.c = Component{Name: "pacman:" + p.base}
		for _, f := range sections(string(files))["FILES"] {
			if !strings.HasSuffix(f, "/") {
				p.c.Paths = append(p.c.Paths, f)
			}
		}
		if n, err := strconv.ParseInt(first(m["BUILDDATE"]), 10, 64); err == nil {
			t := time.Unix(n, 0)
			p.c.Clamp = &t
		}
		bases[name] = p.base
		for _, v := range m["PROVIDES"] {
			if v = firstWord(v); bases[v] == "" {
				bases[v] = p.base
			}
		}
		all = append(all, p)
	}
	var out []Component
	for _, p := range all {
		for _, d := range p.depends {
			if b := bases[firstWord(d)]; b != "" && b != p.base {
				p.c.Needs = append(p.c.Needs, "pacman:"+b)
			}
		}
		out = append(out, p.c)
	}
	return out, nil
}

// sections reads "%NAME%" lines with values below them, up to an empty line.
func sections(text string) map[string][]string {
	out := map[string][]string{}
	cur := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "":
			cur = ""
		case cur == "" && strings.HasPrefix(line, "%"):
			cur = strings.Trim(line, "%")
		case cur != "":
			out[cur] = append(out[cur], line)
		}
	}
	return out
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
