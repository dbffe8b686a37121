package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the generated pages and the scripts' expectations")

// page is the page of a command in docs/commands.
func page(cmd *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n```\n%s\n```\n", cmd.CommandPath(), firstOf(cmd.Long, cmd.Short), useLine(cmd))
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAlso: %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\n## Commands\n\n")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				fmt.Fprintf(&b, "- [%s](%s): %s\n", c.CommandPath(), pageName(c), c.Short)
			}
		}
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\n## Examples\n\n```\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
	}
	options(&b, "Options", cmd.LocalFlags())
	if !cmd.HasParent() {
		return b.String()
	}
	options(&b, "Global options", cmd.InheritedFlags())
	return b.String()
}

func options(b *strings.Builder, title string, fs *pflag.FlagSet) {
	n := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if n++; n == 1 {
			fmt.Fprintf(b, "\n## %s\n\n| option | meaning |\n|---|---|\n", title)
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.TrimSpace(flagHead(f)), strings.ReplaceAll(flagText(f), "|", `\|`))
	})
}

func pageName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".md"
}

// The pages of docs/commands say what the commands say.
func TestCommandDocs(t *testing.T) {
	for _, name := range []string{"STRATA_ROOT", "STRATA_CONFIG", "STRATA_RUNTIME"} {
		t.Setenv(name, "")
	}
	dir := filepath.Join("..", "..", "docs", "commands")
	want := map[string]string{}
	for _, cmd := range all(newRoot(&cli{})) {
		want[pageName(cmd)] = page(cmd)
	}
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if _, ok := want[filepath.Base(path)]; ok {
			continue
		}
		if !*update {
			t.Errorf("%s is a page of no command", path)
		} else if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	for name, text := range want {
		path := filepath.Join(dir, name)
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("%s is not current: run go generate ./cmd/strata (%v)", path, err)
		}
	}
}

// Every command and flag has a help text in the same style.
func TestHelpStyle(t *testing.T) {
	for _, cmd := range all(newRoot(&cli{})) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || cmd.RunE == nil {
			t.Errorf("%s: %q should be a sentence without a stop, and the command should do something", cmd.CommandPath(), cmd.Short)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") || f.Usage[0] >= 'a' {
				t.Errorf("%s --%s: %q should begin with a capital and have no stop", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
	}
}
