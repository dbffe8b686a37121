package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// workload is a scenario. Its rows say what it measures.
type workload struct {
	id, title string
	debian    bool // it needs the Debian base image
	rows      []row
	run       func(m *measuring) error
}

// row is one figure of a workload.
type row struct {
	name string
	goal float64 // Strata's time as a part of that of the best peer; 0 = none
	per  int     // the figure is the time divided by this; 0 = 1
}

// measuring is one run of a workload by one builder.
type measuring struct {
	*world
	builder
	dir   string // of the workload's contexts, the same for all builders and rounds
	times map[string]time.Duration
	errs  map[string]error
}

// take runs a command and notes the time under a row. A builder that fails has no figure there.
func (m *measuring) take(row string, args []string) error {
	if args == nil {
		return nil
	}
	d, err := m.time(args...)
	if err != nil {
		m.errs[row] = err
		return err
	}
	m.times[row] = d
	return nil
}

// best notes the shortest of n runs: for what is so short that other work on the machine would drown it.
func (m *measuring) best(row string, n int, args []string) error {
	var all []time.Duration
	for range n {
		d, err := m.time(args...)
		if err != nil {
			m.errs[row] = err
			return err
		}
		all = append(all, d)
	}
	m.times[row] = slices.Min(all)
	return nil
}

// warm makes the base image known, so that nobody pulls while something else is measured.
func (m *measuring) warm() error {
	dir, err := m.context("warm", func(string) error { return nil }, "FROM "+m.base(), "RUN true")
	if err != nil {
		return err
	}
	return m.call(m.build(dir, m.host+"/bench/warm:1")...)
}

// context makes a directory with a Dockerfile once; fill adds the files.
func (m *measuring) context(name string, fill func(dir string) error, dockerfile ...string) (string, error) {
	dir := filepath.Join(m.dir, name)
	if _, err := os.Stat(filepath.Join(dir, "Dockerfile")); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := fill(dir); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(strings.Join(dockerfile, "\n")+"\n"), 0o644)
}

func (m *measuring) scaled(n int) int { return max(1, int(float64(n)*m.scale)) }

// image returns a name in the registry that nobody has used.
func (m *measuring) image() string {
	m.world.serial++
	return fmt.Sprintf("%s/bench/%s-%d:1", m.host, m.name(), m.world.serial)
}

// round runs a workload with one builder, from empty state to none.
func (w *world) round(x workload, b builder) (m *measuring) {
	m = &measuring{world: w, builder: b, dir: w.disk.path("contexts", x.id), times: map[string]time.Duration{}, errs: map[string]error{}}
	err := b.start()
	if err == nil {
		err = x.run(m)
	}
	for _, r := range x.rows {
		if _, ok := m.times[r.name]; !ok && m.errs[r.name] == nil && err != nil {
			m.errs[r.name] = err
		}
	}
	if err := b.stop(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: stopping %s: %v\n", b.name(), err)
	}
	return m
}

// choose returns the workloads with these ids, or all.
func choose(ids []string) ([]workload, error) {
	all := workloads()
	if len(ids) == 0 {
		return all, nil
	}
	var out []workload
	for _, id := range ids {
		i := slices.IndexFunc(all, func(x workload) bool { return strings.EqualFold(x.id, id) })
		if i < 0 {
			return nil, fmt.Errorf("no such workload: %s", id)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func workloads() []workload {
	return []workload{
		{id: "W1", title: "12 instructions in two stages, nothing changed", rows: []row{{name: "no-op", goal: 1. / 4}}, run: noop},
		{id: "W2", title: "50 RUN steps, per step", rows: []row{{name: "cold", goal: 1. / 6, per: 50}}, run: steps50},
		{id: "W3", title: "COPY of 50,000 files, 300 MB", rows: []row{{name: "cold", goal: 1. / 4}, {name: "unchanged", goal: 1. / 6}, {name: "one file changed", goal: 1. / 6}}, run: manyFiles},
		{id: "W4", title: "COPY of 2 files of 1 GB", rows: []row{{name: "cold", goal: 1. / 5}, {name: "with an OCI archive", goal: 1. / 4}, {name: "with an OCI archive, zstd", goal: 1. / 4}}, run: bigFiles},
		{id: "W5", title: "8 independent stages of 1 s sleep and some work", rows: []row{{name: "cold", goal: 0.7}}, run: stages},
		{id: "W8", title: "30 COPY steps, 600 MB", rows: []row{
			{name: "cold", goal: 1. / 3},
			{name: "push, compressing", goal: 1. / 3},
			{name: "push again", goal: 1. / 3},
			{name: "docker archive", goal: 1. / 3},
			{name: "docker archive again", goal: 1. / 3},
		}, run: copies},
		{id: "W9", title: "pull and unpack Debian, one RUN", debian: true, rows: []row{{name: "cold", goal: 1. / 3}}, run: pull},
		{id: "W10", title: "a clean machine with a cache in a registry: 10 COPY steps, 200 MB, of which 10 RUN steps read", rows: []row{
			{name: "all found, with an OCI archive", goal: 1. / 2},
			{name: "last step changed", goal: 1. / 2},
		}, run: imported},
		{id: "W11", title: "how it grows: RUN steps and files", rows: []row{
			{name: "10 steps, cold", goal: 1. / 6},
			{name: "10 steps, no-op", goal: 1. / 4},
			{name: "100 steps, cold", goal: 1. / 6},
			{name: "100 steps, no-op", goal: 1. / 4},
			{name: "400 steps, cold", goal: 1. / 6},
			{name: "400 steps, no-op", goal: 1. / 4},
			{name: "1k files, unchanged", goal: 1. / 6},
			{name: "10k files, unchanged", goal: 1. / 6},
			{name: "50k files, unchanged", goal: 1. / 6},
			{name: "100k files, unchanged", goal: 1. / 6},
		}, run: growth},
	}
}

func nothing(string) error { return nil }

func noop(m *measuring) error {
	dir, err := m.context("app", func(dir string) error { return fill(dir, 20, 2000) },
		"FROM "+m.base()+" AS build", "WORKDIR /src", "ENV MODE=release", "COPY f0 f1 ./", "RUN cat f0 f1 > deps", "COPY . .", "RUN cat f* > /app",
		"FROM "+m.base(), "LABEL stage=final", "RUN mkdir -p /srv", "COPY --from=build /app /srv/app", "WORKDIR /srv", "CMD [\"/srv/app\"]")
	if err != nil {
		return err
	}
	image := m.image()
	if err := m.call(m.build(dir, image)...); err != nil {
		return err
	}
	return m.best("no-op", 7, m.build(dir, image))
}

// runs is a Dockerfile of n steps that write a file each.
func runs(base string, n int) []string {
	lines := []string{"FROM " + base}
	for i := range n {
		lines = append(lines, fmt.Sprintf("RUN echo %d of %d > /f%d", i, n, i))
	}
	return lines
}

func steps50(m *measuring) error {
	if err := m.warm(); err != nil {
		return err
	}
	dir, err := m.context("steps", nothing, runs(m.base(), 50)...)
	if err != nil {
		return err
	}
	return m.take("cold", m.build(dir, m.image()))
}

func manyFiles(m *measuring) error {
	n := m.scaled(50_000)
	dir, err := m.context("files", func(dir string) error { return fill(dir, n, 6000) }, "FROM "+m.base(), "COPY . /files", "RUN ls /files > /list")
	if err != nil {
		return err
	}
	if err := m.warm(); err != nil {
		return err
	}
	image := m.image()
	if err := m.take("cold", m.build(dir, image)); err != nil {
		return err
	}
	if err := m.take("unchanged", m.build(dir, image)); err != nil {
		return err
	}
	m.world.serial++
	if err := os.WriteFile(fileName(dir, n/2), fmt.Appendf(nil, "changed %d\n", m.world.serial), 0o644); err != nil {
		return err
	}
	return m.take("one file changed", m.build(dir, image))
}

func bigFiles(m *measuring) error {
	size := m.scaled(1 << 30)
	dir, err := m.context("big", func(dir string) error {
		for i := range 2 {
			if err := writeFile(filepath.Join(dir, fmt.Sprint("big", i)), size, uint64(i)); err != nil {
				return err
			}
		}
		return nil
	}, "FROM "+m.base(), "COPY . /big")
	if err != nil {
		return err
	}
	for _, x := range []struct {
		row string
		to  kind
	}{{row: "cold"}, {"with an OCI archive", toOCI}, {"with an OCI archive, zstd", toOCIZstd}} {
		if err := m.start(); err != nil { // each from empty state
			return err
		}
		if err := m.warm(); err != nil {
			return err
		}
		image, file := m.image(), m.disk.path("out.tar")
		args := m.build(dir, image)
		if x.to != "" {
			args = m.export(x.to, dir, image, file)
		}
		if args != nil && args[1] == "push" || x.to != "" && !m.exportsBuild() {
			continue // builds and exports in two commands: not the same thing
		}
		if err := m.take(x.row, args); err != nil {
			return err
		}
		_ = os.Remove(file) // not all rows write it
	}
	return nil
}

// exportsBuild reports whether one command builds and exports.
func (m *measuring) exportsBuild() bool { return m.name() == "strata" || m.name() == "buildctl" }

func stages(m *measuring) error {
	var lines, copies []string
	for i := range 8 {
		lines = append(lines, fmt.Sprintf("FROM %s AS s%d", m.base(), i),
			fmt.Sprintf("RUN sleep 1; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo %d > /r%d", i, i))
		copies = append(copies, fmt.Sprintf("COPY --from=s%d /r%d /", i, i))
	}
	dir, err := m.context("stages", nothing, slices.Concat(lines, []string{"FROM " + m.base()}, copies)...)
	if err != nil {
		return err
	}
	if err := m.warm(); err != nil {
		return err
	}
	return m.take("cold", m.build(dir, m.image()))
}

func copies(m *measuring) error {
	const n = 30
	lines := []string{"FROM " + m.base()}
	for i := range n {
		lines = append(lines, fmt.Sprintf("COPY d%d /d%d", i, i))
	}
	dir, err := m.context("copies", func(dir string) error {
		for i := range n {
			if err := fillBig(filepath.Join(dir, fmt.Sprint("d", i)), 20, m.scaled(1<<20), uint64(i*100)); err != nil {
				return err
			}
		}
		return nil
	}, lines...)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		to           kind
		first, again string
	}{{toRegistry, "push, compressing", "push again"}, {toDocker, "docker archive", "docker archive again"}} {
		if err := m.start(); err != nil {
			return err
		}
		if err := m.warm(); err != nil {
			return err
		}
		image, file := m.image(), m.disk.path("out.tar")
		if _, known := m.times["cold"]; known {
			if err := m.call(m.build(dir, image)...); err != nil {
				return err
			}
		} else if err := m.take("cold", m.build(dir, image)); err != nil {
			return err
		}
		for _, r := range []string{x.first, x.again} {
			if err := m.take(r, m.export(x.to, dir, image, file)); err != nil {
				return err
			}
			_ = os.Remove(file) // a push writes none
		}
	}
	return nil
}

// imported builds on an empty state what another machine has built, with the cache that it has written.
func imported(m *measuring) error {
	c, ok := m.builder.(cacher)
	if !ok {
		return nil
	}
	const n = 10
	lines := []string{"FROM " + m.base()}
	for i := range n {
		lines = append(lines, fmt.Sprintf("COPY d%d /d%d", i, i), fmt.Sprintf("RUN cat /d%d/* | sha256sum > /sum%d", i, i))
	}
	dir, err := m.context("imported", func(dir string) error {
		for i := range n {
			if err := fillBig(filepath.Join(dir, fmt.Sprint("d", i)), 20, m.scaled(1<<20), uint64(i*100)); err != nil {
				return err
			}
		}
		return writeFile(filepath.Join(dir, "last"), 1000, 1)
	}, append(lines, "COPY last /last", "RUN cat /last > /copy")...)
	if err != nil {
		return err
	}
	image, file := m.image(), m.disk.path("out.tar")
	to, from := c.caches(image + "-cache")
	if err := m.call(append(m.build(dir, image), to...)...); err != nil {
		return err
	}
	if err := m.clean(); err != nil {
		return err
	}
	if err := m.take("all found, with an OCI archive", append(m.export(toOCI, dir, image, file), from...)); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	if err := m.clean(); err != nil {
		return err
	}
	m.world.serial++
	if err := os.WriteFile(filepath.Join(dir, "last"), fmt.Appendf(nil, "changed %d\n", m.world.serial), 0o644); err != nil {
		return err
	}
	return m.take("last step changed", append(m.build(dir, image), from...))
}

// clean empties the builder's state, but for the base image.
func (m *measuring) clean() error {
	if err := m.start(); err != nil {
		return err
	}
	return m.warm()
}

func pull(m *measuring) error {
	dir, err := m.context("pull", nothing, "FROM "+m.debian(), "RUN true")
	if err != nil {
		return err
	}
	return m.take("cold", m.build(dir, m.image()))
}

func growth(m *measuring) error {
	if err := m.warm(); err != nil {
		return err
	}
	for _, n := range []int{10, 100, 400} {
		dir, err := m.context(fmt.Sprint("steps", n), nothing, runs(m.base(), max(1, m.scaled(n)))...)
		if err != nil {
			return err
		}
		image := m.image()
		if m.take(fmt.Sprintf("%d steps, cold", n), m.build(dir, image)) != nil {
			break // some builders have a limit on layers
		}
		if err := m.best(fmt.Sprintf("%d steps, no-op", n), 3, m.build(dir, image)); err != nil {
			return err
		}
	}
	for _, k := range []int{1, 10, 50, 100} {
		dir, err := m.context(fmt.Sprintf("files%dk", k), func(dir string) error { return fill(dir, m.scaled(k*1000), 200) }, "FROM "+m.base(), "COPY . /files")
		if err != nil {
			return err
		}
		image := m.image()
		if err := m.call(m.build(dir, image)...); err != nil {
			return err
		}
		if err := m.take(fmt.Sprintf("%dk files, unchanged", k), m.build(dir, image)); err != nil {
			return err
		}
	}
	return nil
}
