package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// options are the command's flags.
type options struct {
	daemon, work, groups, run, results, reference, check string
	subset                                               bool
	parallel, retries                                    int
	inside                                               string
}

func main() {
	var o options
	flag.StringVar(&o.daemon, "daemon", "", "`binary` to test in buildkitd's place, or \"reference\" for the real buildkitd")
	flag.StringVar(&o.work, "work", defaultWork(), "`directory` for what is built; not below /tmp, /run, /etc or /opt")
	flag.StringVar(&o.groups, "groups", "", "`names` of the groups to run, separated by commas (default all)")
	flag.StringVar(&o.run, "run", "", "`regexp` of the functions to run, such as TestCopy.* (default all)")
	flag.BoolVar(&o.subset, "subset", false, "run the sixty functions that CI runs")
	flag.StringVar(&o.results, "results", "", "`file` to write the results to; a part of the tests replaces its lines")
	flag.StringVar(&o.reference, "reference", "reference.txt", "`file` with the results of the real buildkitd")
	flag.StringVar(&o.check, "check", "", "results `file` whose passed tests must pass again")
	flag.IntVar(&o.parallel, "parallel", 4, "`sandboxes` at once")
	flag.IntVar(&o.retries, "retries", 1, "`times` that tests which failed are run again, fewer at once")
	flag.StringVar(&o.inside, "inside", "", "for its own use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.main(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func defaultWork() string {
	if cache, err := os.UserCacheDir(); err == nil {
		return filepath.Join(cache, "strata-conformance")
	}
	return "/var/tmp/strata-conformance"
}

func (o options) main(ctx context.Context) error {
	if o.inside != "" {
		return inside(ctx, o.inside)
	}
	jobs, err := o.jobs()
	if err != nil {
		return err
	}
	if o.daemon == "" {
		return errors.New("-daemon is missing")
	}
	if os.Geteuid() != 0 {
		return errors.New("the tests make namespaces and mounts: run this as root")
	}
	l, unlock, err := openWork(o.work)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := prepare(ctx, l)
	if err != nil {
		return err
	}
	p.Jobs, p.Parallel, p.Retries = jobs, o.parallel, o.retries
	if p.Daemon, err = placeDaemon(l, o.daemon); err != nil {
		return err
	}
	got, err := inWorld(ctx, p)
	if err != nil {
		return err
	}
	return o.report(got)
}

// jobs gives the functions to run by group.
func (o options) jobs() (map[string][]string, error) {
	if o.run != "" {
		if _, err := regexp.Compile(o.run); err != nil {
			return nil, fmt.Errorf("-run: %w", err)
		}
	}
	jobs := map[string][]string{}
	for _, g := range groups {
		switch {
		case o.subset && subset[g.name] == nil:
			continue
		case o.subset:
			jobs[g.name] = subset[g.name]
		case o.run != "":
			jobs[g.name] = []string{o.run}
		default:
			jobs[g.name] = nil
		}
	}
	if o.groups == "" {
		return jobs, nil
	}
	chosen := map[string][]string{}
	for name := range strings.SplitSeq(o.groups, ",") {
		if _, ok := groupNamed(name); !ok {
			return nil, fmt.Errorf("there is no group %q", name)
		}
		if functions, ok := jobs[name]; ok {
			chosen[name] = functions
		}
	}
	return chosen, nil
}

// report writes and prints what was found, and refuses regressions.
func (o options) report(got results) error {
	if len(got) == 0 {
		return errors.New("no test ran")
	}
	reference, err := readResults(o.reference)
	if err != nil {
		return err
	}
	before := results{}
	if o.check != "" {
		if before, err = readResults(o.check); err != nil {
			return err
		}
	}
	if o.results != "" {
		// A part of the tests replaces its part of the file.
		all := results{}
		if o.subset || o.groups != "" || o.run != "" {
			if all, err = readResults(o.results); err != nil {
				return err
			}
		}
		maps.Copy(all, got)
		if err := all.write(o.results, reference); err != nil {
			return err
		}
	}
	for _, line := range got.summary(reference) {
		fmt.Println(line)
	}
	if lost := regressions(before, got); len(lost) > 0 {
		return fmt.Errorf("%d tests passed before and do not now:\n%s", len(lost), strings.Join(lost, "\n"))
	}
	return nil
}
