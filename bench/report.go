package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report gathers the figures of all rounds.
type report struct {
	builders []string
	done     []workload
	figures  map[figure][]time.Duration
	failed   map[figure]error
}

// figure names a cell of the table.
type figure struct{ workload, row, builder string }

func newReport(bs []builder) *report {
	r := &report{figures: map[figure][]time.Duration{}, failed: map[figure]error{}}
	for _, b := range bs {
		r.builders = append(r.builders, b.name())
	}
	return r
}

func (r *report) note(x workload, b builder, round int, m *measuring) {
	if !slices.ContainsFunc(r.done, func(y workload) bool { return x.id == y.id }) {
		r.done = append(r.done, x)
	}
	var said error
	for _, row := range x.rows {
		f := figure{x.id, row.name, b.name()}
		if d, ok := m.times[row.name]; ok {
			r.figures[f] = append(r.figures[f], d/time.Duration(max(1, row.per)))
			fmt.Fprintf(os.Stderr, "%-4s %-26s %-9s round %d: %s\n", x.id, row.name, b.name(), round+1, short(r.figures[f][len(r.figures[f])-1]))
		}
		if err := m.errs[row.name]; err != nil {
			r.failed[f] = err
			if err == said { // one failure can leave several rows empty
				continue
			}
			said = err
			fmt.Fprintf(os.Stderr, "%-4s %-26s %-9s round %d failed: %v\n", x.id, row.name, b.name(), round+1, err)
		}
	}
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func short(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// cell is "median (min–max)".
func (r *report) cell(f figure) string {
	d := r.figures[f]
	switch {
	case len(d) == 0 && r.failed[f] != nil:
		return "fails"
	case len(d) == 0:
		return ""
	case len(d) == 1:
		return short(d[0])
	}
	return fmt.Sprintf("%s (%s–%s)", short(median(d)), short(slices.Min(d)), short(slices.Max(d)))
}

// ratio compares Strata with the best peer of a row.
func (r *report) ratio(x workload, row row) string {
	ours := r.figures[figure{x.id, row.name, "strata"}]
	best := time.Duration(0)
	for _, b := range r.builders[1:] {
		if d := r.figures[figure{x.id, row.name, b}]; len(d) > 0 && (best == 0 || median(d) < best) {
			best = median(d)
		}
	}
	if len(ours) == 0 || best == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", median(ours).Seconds()/best.Seconds())
}

func (r *report) rows(x workload, f func(cells []string)) {
	for _, row := range x.rows {
		cells := []string{x.id + " " + row.name}
		for _, b := range r.builders {
			cells = append(cells, r.cell(figure{x.id, row.name, b}))
		}
		goal := ""
		if row.goal > 0 {
			goal = fmt.Sprintf("≤ %.2f", row.goal)
		}
		f(append(cells, r.ratio(x, row), goal))
	}
}

func (r *report) head() []string {
	return append(append([]string{"row"}, r.builders...), "strata / best peer", "goal")
}

// print shows a workload's rows.
func (r *report) print(x workload) {
	fmt.Printf("\n%s: %s\n", x.id, x.title)
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(r.head(), "\t"))
	r.rows(x, func(cells []string) { fmt.Fprintln(t, strings.Join(cells, "\t")) })
	_ = t.Flush() // standard output
}

// write writes the whole table in Markdown.
func (r *report) write(file string, rounds int, scale float64) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nMade by `make bench` on %s: %d rounds, in which every builder runs every workload in turn; the table shows medians, with the least and the greatest value. ",
		time.Now().UTC().Format("2 January 2006"), rounds)
	fmt.Fprintf(&b, "A ratio compares Strata's median with that of the fastest other builder; the goals are the project's own. An empty cell means that the builder has no such command.\n\n")
	if scale != 1 {
		fmt.Fprintf(&b, "**The workloads were scaled by %g: these figures only show that the program works.**\n\n", scale)
	}
	machine(&b)
	versions(&b, r.builders)
	fmt.Fprintf(&b, "\n`strata` is `strata build -t`, with `strata daemon serve`; `buildctl` is BuildKit's client with buildkitd as it is started by default (OCI worker, overlayfs, runc), without an export unless the row says so; "+
		"`docker` is dockerd with the builder of `DOCKER_BUILDKIT=0`; `buildah` is `buildah build --layers`. All steps run in the host's network, all state is on one journaled ext4 file system in a loop device, "+
		"the registry is on the same machine. Each workload starts from empty state; except in W9 the base image has been pulled before. File systems are synced before each measurement.\n")
	for _, x := range r.done {
		fmt.Fprintf(&b, "\n## %s: %s\n\n| %s |\n|%s\n", x.id, x.title, strings.Join(r.head(), " | "), strings.Repeat("---|", len(r.head())))
		r.rows(x, func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) })
	}
	if file == "" || file == "-" {
		_, err := os.Stdout.Write(b.Bytes())
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// machine describes where the figures come from.
func machine(w io.Writer) {
	var u unix.Utsname
	_ = unix.Uname(&u) // never fails
	fmt.Fprintf(w, "Machine: %d processors (%s), %s of memory, Linux %s, %s.\n\n", runtime.NumCPU(),
		field("/proc/cpuinfo", "model name"), field("/proc/meminfo", "MemTotal"), unix.ByteSliceToString(u.Release[:]), runtime.Version())
}

// field reads the value of the first line with that name.
func field(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func versions(w io.Writer, builders []string) {
	commands := map[string][]string{
		"docker": {"dockerd", "--version"}, "buildah": {"buildah", "--version"},
		"buildctl": {"go", "-C", "tools", "list", "-m", "github.com/moby/buildkit"},
	}
	for _, b := range builders {
		if c := commands[b]; c != nil {
			out, _ := exec.Command(c[0], c[1:]...).Output() // an unknown version is an empty line
			fmt.Fprintf(w, "- %s: %s\n", b, strings.TrimSpace(string(out)))
		}
	}
}
