package main

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
)

func newPrune(c *cli) *cobra.Command {
	var policy engine.PrunePolicy
	var explain bool
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove cached results that no image needs", Args: args(0, 0, "no arguments"),
		Example: "  strata prune --keep-bytes 20g\n  strata prune --until 72h --dry-run",
	}
	fs := cmd.Flags()
	fs.BoolVarP(&policy.All, "all", "a", false, "Remove all cached results, unnamed images and cache mounts")
	bytesFlag(fs, "keep-bytes", "Remove the least recently used until so much is left", &policy.KeepBytes)
	parsedFlag(fs, spec{"until", "age", "", "Remove only what was not used for so long, such as 24h or 7d"}, parseAge, func(d time.Duration) { policy.Until = d })
	fs.StringArrayVar(&policy.Filters, "filter", nil, "Remove only what matches: NAME=VALUE")
	fs.BoolVar(&policy.DryRun, "dry-run", false, "Remove nothing; say what would be removed")
	fs.BoolVar(&explain, "explain", false, "Say why each thing is removed")
	fs.BoolP("force", "f", false, "Accepted for compatibility; prune never asks")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(eng builder) error {
			r, err := eng.Prune(cmd.Context(), policy)
			if err != nil {
				return err
			}
			return c.listPruned(r, policy.DryRun, explain)
		})
	}
	return cmd
}

func (c *cli) listPruned(r *engine.PruneReport, dry, explain bool) error {
	t := tabwriter.NewWriter(c.out, 0, 8, 3, ' ', 0)
	head := "ID\tSIZE\tWHAT"
	if explain {
		head += "\tWHY"
	}
	var total int64
	for i, g := range r.Removed {
		if i == 0 {
			fmt.Fprintln(t, head)
		}
		total += g.Size
		fmt.Fprintf(t, "%s\t%s\t%s", shortID(g.ID, false), bytesText(g.Size), oneLine(g.Label))
		if explain {
			fmt.Fprintf(t, "\t%s", g.Reason)
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return diag.Errorf(diag.Internal, "standard output: %w", err)
	}
	word := "reclaimed"
	if dry {
		word = "to reclaim"
	}
	fmt.Fprintf(c.out, "Total %s: %s\n", word, bytesText(total))
	for _, k := range r.Kept {
		fmt.Fprintf(c.out, "Kept: %s in %d: %s\n", bytesText(k.Size), k.Count, k.Reason)
	}
	return nil
}

// oneLine is what a column shows of a label.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 60 {
		return string(r[:59]) + "…"
	}
	return s
}

// parseAge reads a duration of Go, or a number of days or weeks: "36h", "7d", "2w".
func parseAge(s string) (time.Duration, error) {
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			if days, err := strconv.ParseFloat(n, 64); err == nil && days >= 0 {
				return time.Duration(days * float64(unit)), nil
			}
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, invalid("it must be an age, such as 90m, 24h, 7d or 2w")
	}
	return d, nil
}

func newUsage(c *cli) *cobra.Command {
	format := "table"
	cmd := &cobra.Command{Use: "du [OPTIONS]", Short: "Show what the store's disk space is used for", Args: args(0, 0, "no arguments")}
	parsedFlag(cmd.Flags(), spec{"format", "format", "table", "How to print: table or json"}, oneOf("table", "json"), func(s string) { format = s })
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(eng builder) error {
			items, err := eng.Usage(cmd.Context())
			if err != nil {
				return err
			}
			if format == "json" {
				return printJSON(c.out, items)
			}
			t := tabwriter.NewWriter(c.out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(t, "ID\tKIND\tSIZE\tUSED\tIN USE\tWHAT")
			var total int64
			for _, it := range items {
				total += it.Size
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%v\t%s\n", shortID(it.ID, false), it.Kind, bytesText(it.Size), ago(it.Used), it.InUse, oneLine(it.Label))
			}
			fmt.Fprintf(t, "Total: %s\n", bytesText(total))
			return t.Flush()
		})
	}
	return cmd
}

func newCheck(c *cli) *cobra.Command {
	var full, repair bool
	cmd := &cobra.Command{
		Use: "check [OPTIONS]", Short: "Check the state for damage", Args: args(0, 0, "no arguments"),
		Long: "Check the state for damage. It ends with code 1 if there is any that was not repaired.",
	}
	cmd.Flags().BoolVar(&full, "full", false, "Read every file and compare it with its digest")
	cmd.Flags().BoolVar(&repair, "repair", false, "Drop what is damaged, so that it is made or pulled again")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(eng builder) error {
			problems, err := eng.Check(cmd.Context(), full, repair)
			if err != nil {
				return err
			}
			left := 0
			for _, p := range problems {
				word := "damaged"
				if p.Repaired {
					word = "repaired"
				} else {
					left++
				}
				fmt.Fprintf(c.out, "%s: %s %s: %s\n", word, p.What, p.Where, p.Err)
			}
			if left > 0 {
				return diag.Errorf(diag.Conflict, "%d of the state's parts are damaged", left).WithHint("run strata check --repair")
			}
			fmt.Fprintln(c.out, "no damage left")
			return nil
		})
	}
	return cmd
}
