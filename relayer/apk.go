package relayer

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/layer"
)

// apk finds the origins of Alpine's packages; origins of which one replaces files of another are one component. Source:
// apk-tools doc/apk-package.5 and the database format of apk-tools 2.
type apk struct{}

func (apk) Name() string { return "apk" }

type apkPackage struct {
	name, origin string
	paths        []string
	depends      []string
	provides     []string
	replaces     []string
	built        int64
}

func (apk) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	var all []apkPackage
	room := newNameBudget()
	for _, p := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		if real, err := fs.Resolve(p); err != nil || real != p {
			continue // the one is a link to the other
		}
		data, err := read(fs, p, maxDatabase)
		if err != nil {
			return nil, err
		}
		all = append(all, apkInstalled(string(data), room)...)
		if err := room.err(); err != nil {
			return nil, err
		}
	}
	origin := map[string]string{}
	for _, p := range all {
		origin[p.name] = p.origin
		for _, v := range p.provides {
			if origin[v] == "" {
				origin[v] = p.origin
			}
		}
	}
	merged := map[string]string{}
	root := func(o string) string {
		for merged[o] != "" {
			if further := merged[merged[o]]; further != "" { // the next look is shorter
				merged[o] = further
			}
			o = merged[o]
		}
		return o
	}
	for _, p := range all {
		for _, r := range p.replaces {
			a, b := root(p.origin), root(origin[r])
			if b != "" && a != b {
				merged[max(a, b)] = min(a, b)
			}
		}
	}
	var out []Component
	var newest int64
	for _, p := range all {
		newest = max(newest, p.built)
	}
	for _, p := range all {
		c := Component{Name: "apk:" + root(p.origin), Paths: p.paths}
		if p.built > 0 {
			t := time.Unix(p.built, 0)
			c.Clamp, c.Updates = &t, func() float64 { return rateSince(t, time.Unix(newest, 0)) }
		}
		for _, d := range p.depends {
			if o := root(origin[d]); o != "" && o != root(p.origin) {
				c.Needs = append(c.Needs, "apk:"+o)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// apkInstalled reads the database: a letter, a colon and a value for each line, F: a directory, R: a file in it. It returns nothing if there is no
// room for the names.
func apkInstalled(data string, room *nameBudget) []apkPackage {
	var all []apkPackage
	var p apkPackage
	dir := ""
	end := func() {
		if p.name != "" {
			p.origin = cmp.Or(p.origin, p.name)
			all = append(all, p)
		}
		p, dir = apkPackage{}, ""
	}
	for line := range strings.Lines(data) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			end()
			continue
		}
		k, v, _ := strings.Cut(line, ":")
		words := func() []string {
			list := strings.Fields(v)
			for i, w := range list {
				list[i] = firstWord(w)
			}
			return slices.DeleteFunc(list, func(s string) bool { return s == "" })
		}
		switch k {
		case "P":
			p.name = v
		case "o":
			p.origin = v
		case "D":
			p.depends = words()
		case "p":
			p.provides = words()
		case "r":
			p.replaces = words()
		case "t":
			p.built, _ = strconv.ParseInt(v, 10, 64) // 0 if it is none
		case "F":
			dir = v
		case "R":
			if !room.take(len(dir) + len(v)) {
				return nil
			}
			p.paths = append(p.paths, clean(dir+"/"+v))
		}
	}
	end()
	return all
}
