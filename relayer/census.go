package relayer

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// census is a file system with the owner of each file.
type census struct {
	files []*file
	at    map[string]*file
	comps []*component // those that own something, sorted by name
}

// file is one entry of the file system, directories included, which belong to nobody.
type file struct {
	entry    *layer.Entry
	owner    *component
	volatile bool
}

// volatile are paths that change with every package or every run: they are never a component's.
var volatile = []string{
	"var/lib/dpkg", "var/lib/apt", "var/cache", "var/log", "var/tmp", "var/backups", "etc/ld.so.cache", "lib/apk/db", "usr/lib/apk/db",
	"var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm", "var/lib/dnf", "var/lib/yum", "var/lib/pacman", "nix/var", "run", "tmp", "proc", "sys", "dev",
}

func isVolatile(p string) bool {
	return slices.ContainsFunc(volatile, func(v string) bool { return p == v || strings.HasPrefix(p, v+"/") })
}

// survey asks the generators, and settles who owns what.
func survey(ctx context.Context, fs *layer.FS, opt Options) (*census, error) {
	c := &census{at: map[string]*file{}}
	for e, err := range fs.Entries() {
		if err != nil {
			return nil, err
		}
		f := &file{entry: e, volatile: isVolatile(e.Path)}
		c.files = append(c.files, f)
		if e.Type != layer.Dir {
			c.at[e.Path] = f
		}
	}
	byName := map[string]*component{}
	for _, g := range opt.Generators {
		found, err := g.Find(ctx, fs)
		if err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "generator %s: %w", g.Name(), err)
		}
		slices.SortStableFunc(found, func(a, b Component) int { return strings.Compare(a.Name, b.Name) })
		_, explicit := g.(xattrs)
		c.settle(fs, c.join(found, byName), explicit)
	}
	c.keepLinks()
	for _, x := range byName {
		if x.files > 0 {
			c.comps = append(c.comps, x)
		}
	}
	slices.SortFunc(c.comps, func(a, b *component) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}

// join makes one component of those with one name.
func (c *census) join(found []Component, byName map[string]*component) []*component {
	var out []*component
	for _, f := range found {
		x := byName[f.Name]
		if x == nil {
			x = &component{Component: f}
			byName[f.Name] = x
			out = append(out, x)
			continue
		}
		x.Paths, x.Dirs, x.Homes, x.Needs = append(x.Paths, f.Paths...), append(x.Dirs, f.Dirs...), append(x.Homes, f.Homes...), append(x.Needs, f.Needs...)
		if f.Clamp != nil && (x.Clamp == nil || f.Clamp.After(*x.Clamp)) {
			x.Clamp = f.Clamp
		}
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// settle gives unowned files to the components of one generator: first by path, then by directory, then by home.
func (c *census) settle(fs *layer.FS, comps []*component, explicit bool) {
	dirs, homes := map[string]*component{}, map[string]*component{}
	for _, x := range comps {
		for _, p := range x.Paths {
			f := c.find(fs, p)
			if f == nil || f.owner != nil || f.volatile && !explicit {
				continue
			}
			c.give(f, x)
			if f.entry.ModTime.After(x.newst) {
				x.newst = f.entry.ModTime
			}
		}
		for _, d := range x.Dirs {
			if d, err := fs.Resolve(clean(d)); err == nil && dirs[d] == nil {
				dirs[d] = x
			}
		}
		for _, d := range x.Homes {
			d, err := fs.Resolve(clean(d))
			if err != nil || !strings.HasPrefix(d, "usr/") && !strings.HasPrefix(d, "opt/") {
				continue
			}
			if other, ok := homes[d]; ok && other != x {
				homes[d] = nil // shared
			} else {
				homes[d] = x
			}
		}
	}
	if len(dirs)+len(homes) > 0 {
		for _, f := range c.files {
			if f.owner != nil || f.volatile || f.entry.Type == layer.Dir {
				continue
			}
			if x := nearest(f.entry.Path, dirs); x != nil {
				c.give(f, x)
			} else if x := nearest(f.entry.Path, homes); x != nil {
				c.give(f, x)
			}
		}
	}
	for _, x := range comps {
		x.clamp = x.Clamp
		if x.clamp == nil && len(x.Homes) > 0 && !x.newst.IsZero() {
			x.clamp = &x.newst
		}
	}
}

// nearest looks the parents of a path up, the nearest first. A directory that several share ends the search.
func nearest(p string, owners map[string]*component) *component {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if x, ok := owners[d]; ok {
			return x
		}
	}
	return nil
}

func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// find returns the file at a path as a package database writes it: possibly through directories that are symlinks.
func (c *census) find(fs *layer.FS, p string) *file {
	p = clean(p)
	if f := c.at[p]; f != nil {
		return f
	}
	p, err := fs.Canonical(p)
	if err != nil {
		return nil
	}
	return c.at[p]
}

func (c *census) give(f *file, x *component) {
	f.owner = x
	x.files++
	x.bytes += 512 + (f.entry.Size+511)&^511
}

func (c *census) take(f *file) {
	f.owner.files--
	f.owner.bytes -= 512 + (f.entry.Size+511)&^511
	f.owner = nil
}

// keepLinks puts all names of a file into one component: the first by name that has one of them.
func (c *census) keepLinks() {
	groups := map[string][]*file{}
	for _, f := range c.files {
		if f.entry.Type == layer.HardLink {
			if len(groups[f.entry.Link]) == 0 {
				groups[f.entry.Link] = []*file{c.at[f.entry.Link]}
			}
			groups[f.entry.Link] = append(groups[f.entry.Link], f)
		}
	}
	for _, g := range groups {
		var best *component
		for _, f := range g {
			if f.owner != nil && (best == nil || f.owner.Name < best.Name) {
				best = f.owner
			}
		}
		for _, f := range g {
			if f.owner == best {
				continue
			}
			if f.owner != nil {
				c.take(f)
			}
			c.give(f, best)
		}
	}
}
