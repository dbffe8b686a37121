package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the flags.
type options struct {
	strata string
	only   []string
	peers  []string
	rounds int
	table  string
	dir    string
	size   int64
	scale  float64
	show   bool
}

func main() {
	var o options
	var only, peers string
	flag.StringVar(&o.strata, "strata", "bin/strata", "the strata binary")
	flag.StringVar(&only, "only", "", "workloads to run, such as W1,W3; all if empty")
	flag.StringVar(&peers, "peers", "buildctl,docker,buildah", "other builders to run; those that are not installed are left out")
	flag.IntVar(&o.rounds, "rounds", 3, "how often every builder runs every workload")
	flag.StringVar(&o.table, "table", "", "file for the table in Markdown, - for standard output (default docs/benchmarks.md for a whole run, - otherwise)")
	flag.StringVar(&o.dir, "dir", "/var/tmp/strata-bench", "directory for the loop device's file and for what is kept between runs")
	flag.Int64Var(&o.size, "size", 48, "size of the file system in GiB (sparse)")
	flag.Float64Var(&o.scale, "scale", 1, "multiply the sizes of the workloads: 0.01 tries everything out quickly, and its figures mean nothing")
	flag.BoolVar(&o.show, "v", false, "show what the builders print")
	flag.Parse()
	o.only, o.peers = split(only), split(peers)
	if o.table == "" && len(o.only) == 0 && o.scale == 1 {
		o.table = "docs/benchmarks.md"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(s string) bool { return s == "" })
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a loop device, mounts and builders need root")
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	strata, err := filepath.Abs(o.strata)
	if err != nil {
		return err
	}
	if _, err := os.Stat(strata); err != nil {
		return fmt.Errorf("%w: build it first: make build", err)
	}
	d, err := mountDisk(ctx, o.dir, o.size<<30)
	if err != nil {
		return err
	}
	defer d.close()
	w := &world{ctx: ctx, disk: d, scale: o.scale, verbose: o.show}
	if err := w.serve(); err != nil {
		return err
	}
	defer w.registry.stop()
	if err := w.pushBase(o.dir, slices.ContainsFunc(chosen, func(x workload) bool { return x.debian })); err != nil {
		return err
	}
	builders, err := w.builders(strata, o.peers)
	if err != nil {
		return err
	}
	r := newReport(builders)
	defer func() {
		if err := r.write(o.table, o.rounds, o.scale); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}()
	for _, x := range chosen {
		for round := range o.rounds {
			for _, b := range builders {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				r.note(x, b, round, w.round(x, b))
			}
		}
		r.print(x)
	}
	return nil
}
