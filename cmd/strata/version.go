package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/sandbox/restrict"
)

// version is set by the linker.
var version = "dev"

// versionInfo is what strata version says.
type versionInfo struct {
	Strata   string   `json:"strata"`
	Commit   string   `json:"commit,omitempty"`
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Runtime  string   `json:"runtime"`
	Git      string   `json:"git"`
	Kernel   string   `json:"kernel"`
	Features []string `json:"features"`
}

func newVersion(c *cli) *cobra.Command {
	format := "text"
	cmd := &cobra.Command{Use: "version [OPTIONS]", Short: "Show the versions of Strata and of what it uses", Args: args(0, 0, "no arguments")}
	parsedFlag(cmd.Flags(), spec{"format", "format", "text", "How to print: text or json"}, oneOf("text", "json"), func(s string) { format = s })
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := c.versions(cmd.Context())
		if format == "json" {
			return printJSON(c.out, v)
		}
		for _, row := range [][2]string{
			{"strata", strings.TrimSpace(v.Strata + " " + v.Commit)},
			{"go", v.Go + " " + v.Platform},
			{"runtime", v.Runtime},
			{"git", v.Git},
			{"kernel", v.Kernel},
			{"features", strings.Join(v.Features, ", ")},
		} {
			fmt.Fprintf(c.out, "%-9s %s\n", row[0], row[1])
		}
		return nil
	}
	return cmd
}

func (c *cli) versions(ctx context.Context) versionInfo {
	v := versionInfo{Strata: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value[:min(12, len(s.Value))]
			}
		}
	}
	v.Runtime = firstLine(ctx, firstOf(c.runtime, "runc"), "--version")
	if c.runtime == "" && sandbox.BuiltIn() == nil {
		v.Runtime = "built in, " + v.Runtime
	}
	v.Git = firstLine(ctx, "git", "--version")
	v.Kernel = readLine("/proc/sys/kernel/osrelease")
	v.Features = features()
	return v
}

// firstLine is the first line that a program prints, or that it was not found.
func firstLine(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return name + " was not found"
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line)
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// features are the abilities of this machine that builds depend on.
func features() []string {
	out := []string{"rootless"}
	if os.Geteuid() == 0 {
		out[0] = "root"
	}
	if strings.Contains(readFile("/proc/filesystems"), "\toverlay\n") {
		out = append(out, "overlay")
	}
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		out = append(out, "cgroup2")
	} else if exists("/sys/fs/cgroup/memory") {
		out = append(out, "cgroup1")
	}
	if strings.Contains(readFile("/proc/self/status"), "Seccomp:") {
		out = append(out, "seccomp")
	}
	if abi := restrict.ABI(); abi > 0 {
		out = append(out, fmt.Sprintf("landlock %d", abi))
	}
	return out
}

func readFile(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}
