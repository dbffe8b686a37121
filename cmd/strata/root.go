package main

import (
	"fmt"
	"os"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// defaultRoot is where the state is kept.
const defaultRoot = "/var/lib/strata"

// newRoot makes the command with all its subcommands.
func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "strata [OPTIONS] COMMAND",
		Short: "Build container images",
		Long:  "Strata builds container images from Dockerfiles, and keeps, runs, pulls and pushes them.",
		RunE:  group, Args: cobra.ArbitraryArgs,
		PersistentPreRunE: c.prepare,
		SilenceErrors:     true, SilenceUsage: true, DisableSuggestions: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	fs := root.PersistentFlags()
	fs.StringVar(&c.root, "root", firstOf(os.Getenv("STRATA_ROOT"), defaultRoot), "Directory of Strata's state ($STRATA_ROOT)")
	fs.StringVar(&c.config, "config", firstOf(os.Getenv("STRATA_CONFIG"), "/etc/strata/strata.toml"), "File with the registries' settings ($STRATA_CONFIG)")
	fs.StringVar(&c.runtime, "runtime", os.Getenv("STRATA_RUNTIME"), "OCI runtime that runs all steps (default: built in, and runc in PATH for what that has not; $STRATA_RUNTIME)")
	fs.BoolVar(&c.noDaemon, "no-daemon", false, "Run the engine in this process (also STRATA_DAEMON=off)")
	fs.BoolVarP(&c.debug, "debug", "D", false, "Log what the engine does to standard error, in this process")
	root.AddCommand(newBuild(c), newImage(c), newLayer(c), newRun(c), newPrune(c), newUsage(c), newCheck(c), newDaemon(c), newServe(c), newVersion(c))
	root.AddCommand(shortcuts(c)...)
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpTemplate(helpTemplate)
	root.SetFlagErrorFunc(badFlag)
	cobra.AddTemplateFuncs(template.FuncMap{"useLine": useLine, "flagLines": flagLines})
	for _, cmd := range all(root) {
		cmd.DisableFlagsInUseLine = true
		cmd.Flags().SortFlags = true
		cmd.Flags().BoolP("help", "h", false, "Show this help")
	}
	return root
}

// shortcuts are commands of "strata image" that Docker has at the top. The help does not list them.
func shortcuts(c *cli) []*cobra.Command {
	rmi, images := newImageRemove(c), newImageList(c)
	rmi.Use, images.Use = "rmi [OPTIONS] IMAGE [IMAGE...]", "images [OPTIONS]"
	rmi.Aliases, images.Aliases = nil, nil
	out := []*cobra.Command{newImagePull(c), newImagePush(c), newImageTag(c), newImageSave(c), newImageLoad(c), newImageImport(c), rmi, images}
	for _, cmd := range out {
		cmd.Hidden = true
	}
	return out
}

// group is what a command that only has subcommands does: it shows its help, or says which word it does not know.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return cmd.Help()
}

// all lists a command and those below it.
func all(cmd *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		out = append(out, all(c)...)
	}
	return out
}

// useLine is the command line with the names of all parent commands.
func useLine(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.Use, " ")
	return strings.TrimSpace(cmd.CommandPath() + " " + rest)
}

// flagHead is "-t, --tag list", or "    --tag list" for a flag without a short form.
func flagHead(f *pflag.Flag) string {
	head := "    --" + f.Name
	if f.Shorthand != "" {
		head = "-" + f.Shorthand + ", --" + f.Name
	}
	switch kind := f.Value.Type(); kind {
	case "bool":
		return head
	case "stringSlice", "stringArray":
		return head + " list"
	case "int64", "uint64":
		return head + " number"
	default:
		return head + " " + kind
	}
}

// flagText is what a flag is for, with its default.
func flagText(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "0", "false", "[]", "true":
		return f.Usage
	}
	return f.Usage + " (default " + f.DefValue + ")"
}

// flagLines is a table of flags.
func flagLines(fs *pflag.FlagSet) string {
	var heads, texts []string
	width := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			heads, texts = append(heads, flagHead(f)), append(texts, flagText(f))
			width = max(width, len(heads[len(heads)-1]))
		}
	})
	var b strings.Builder
	for i := range heads {
		fmt.Fprintf(&b, "  %-*s   %s\n", width, heads[i], texts[i])
	}
	return strings.TrimRight(b.String(), "\n")
}

const helpTemplate = `{{.UsageString}}`

const usageTemplate = `Usage:  {{useLine .}}

{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}
{{end}}{{if .HasAvailableSubCommands}}
Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if gt (len .Aliases) 0}}
Aliases:  {{.NameAndAliases}}
{{end}}{{if .HasExample}}
Examples:
{{.Example}}
{{end}}{{if .HasAvailableLocalFlags}}
Options:
{{flagLines .LocalFlags}}
{{end}}{{if .HasAvailableInheritedFlags}}
Global options:
{{flagLines .InheritedFlags}}
{{end}}{{if .HasAvailableSubCommands}}
Run '{{.CommandPath}} COMMAND --help' for more on a command.
{{end}}`
