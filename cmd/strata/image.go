package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strata-build/strata/cmd/strata/progress"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
)

func newImage(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image COMMAND", Short: "Work with images, in the store and outside of it",
		RunE: group, Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newImageList(c), newImageInspect(c), newImageImport(c), newImageSave(c), newImageLoad(c),
		newImagePush(c), newImagePull(c), newImageRemove(c), newImageTag(c), newImagePrune(c),
		newImageAssemble(c), newImageLayers(c), newImagePushOnto(c), newImageRelayer(c), newImageRebase(c), newImageConvert(c), newImageExport(c))
	return cmd
}

func newImageList(c *cli) *cobra.Command {
	var quiet, full bool
	format := "table"
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Short: "List images", Aliases: []string{"list"}, Args: args(0, 0, "no arguments")}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the IDs")
	cmd.Flags().BoolVar(&full, "no-trunc", false, "Print whole IDs")
	parsedFlag(cmd.Flags(), spec{"format", "format", "table", "How to print: table or json"}, oneOf("table", "json"), func(s string) { format = s })
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(eng builder) error {
			images, err := eng.Images(cmd.Context())
			if err != nil {
				return err
			}
			switch {
			case format == "json":
				return printJSON(c.out, images)
			case quiet:
				for _, im := range images {
					fmt.Fprintln(c.out, shortID(im.ID, full))
				}
				return nil
			}
			return listImages(c.out, images, full)
		})
	}
	return cmd
}

func listImages(w io.Writer, images []engine.ImageInfo, full bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tID\tPLATFORM\tUPDATED\tSIZE")
	for _, im := range images {
		var platforms []string
		for _, p := range im.Platforms {
			platforms = append(platforms, graph.FormatPlatform(p.Platform))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", im.Name, shortID(im.ID, full), strings.Join(platforms, ","), ago(im.Updated), bytesText(im.Size))
	}
	return t.Flush()
}

func newImageInspect(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "inspect IMAGE [IMAGE...]", Short: "Show all that is known of images, as JSON", Args: args(1, -1, "at least one image"),
		RunE: func(cmd *cobra.Command, names []string) error {
			return c.with(cmd.Context(), func(eng builder) error {
				var out []*engine.ImageInfo
				for _, name := range names {
					im, err := eng.InspectImage(cmd.Context(), name)
					if err != nil {
						return err
					}
					out = append(out, im)
				}
				return printJSON(c.out, out)
			})
		},
	}
}

func newImageImport(c *cli) *cobra.Command {
	var opt engine.ImportOptions
	cmd := &cobra.Command{
		Use: "import [OPTIONS] FILE|- NAME", Short: "Make an image of a tar archive of a root file system", Args: args(2, 2, "an archive and a name"),
		Example: "  strata image import rootfs.tar.gz base:1 --change 'CMD [\"/bin/sh\"]'",
	}
	cmd.Flags().StringArrayVarP(&opt.Changes, "change", "c", nil, "Apply a Dockerfile instruction to the image's configuration")
	cmd.Flags().StringVarP(&opt.Message, "message", "m", "", "Comment of the layer in the image's history")
	parsedFlag(cmd.Flags(), spec{"platform", "platform", "", "Platform of the image (default that of this machine)"}, parsePlatform, func(p graph.Platform) { opt.Platform = p })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opt.Name = args[1]
		return c.withInput(args[0], func(r io.Reader) error {
			return c.with(cmd.Context(), func(eng builder) error {
				im, err := eng.ImportImage(cmd.Context(), r, opt)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.out, im.ID)
				return nil
			})
		})
	}
	return cmd
}

// withInput opens a file, or standard input for "-".
func (c *cli) withInput(path string, f func(io.Reader) error) error {
	if path == "-" {
		return f(bufio.NewReaderSize(c.in, 1<<20))
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nearFile(diag.Errorf(diag.NotFound, "%s does not exist", path), path)
	}
	if err != nil {
		return diag.Errorf(diag.Invalid, "%w", err)
	}
	defer file.Close()
	return f(file)
}

func newImageSave(c *cli) *cobra.Command {
	var path string
	format := "oci"
	cmd := &cobra.Command{Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Write images to an archive", Args: args(1, -1, "at least one image")}
	cmd.Flags().StringVarP(&path, "output", "o", "-", "File to write; - is standard output")
	parsedFlag(cmd.Flags(), spec{"format", "format", "oci", "Format of the archive: oci or docker"}, oneOf("oci", "docker"), func(s string) { format = s })
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if f, ok := c.out.(*os.File); ok && path == "-" && isTerminal(f) {
			return diag.Errorf(diag.Invalid, "an archive is not written to a terminal").WithHint("give a file with --output")
		}
		return c.with(cmd.Context(), func(eng builder) error {
			if path == "-" {
				return eng.SaveImages(cmd.Context(), c.out, names, format)
			}
			return outfile.Write(path, func(w io.Writer) error { return eng.SaveImages(cmd.Context(), w, names, format) })
		})
	}
	return cmd
}

func newImageLoad(c *cli) *cobra.Command {
	var path string
	cmd := &cobra.Command{Use: "load [OPTIONS]", Short: "Read images from an archive (OCI or Docker)", Args: args(0, 0, "no arguments")}
	cmd.Flags().StringVarP(&path, "input", "i", "-", "File to read; - is standard input")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.withInput(path, func(r io.Reader) error {
			return c.with(cmd.Context(), func(eng builder) error {
				names, err := eng.LoadImages(cmd.Context(), r)
				for _, n := range names {
					fmt.Fprintln(c.out, n)
				}
				return err
			})
		})
	}
	return cmd
}

// transfer runs a call that talks to a registry, with the user's credentials and a display.
func (c *cli) transfer(ctx context.Context, f func(builder, session.Session, event.Sink) error) error {
	sess, err := session.NewLocal(session.LocalOptions{Credential: registry.DockerCredentials("")})
	if err != nil {
		return err
	}
	return c.with(ctx, func(eng builder) error {
		show := c.display(progress.Auto)
		err := f(eng, sess, show.Sink())
		show.Close(err)
		return err
	})
}

func newImagePush(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "push IMAGE", Short: "Push an image to its registry", Args: args(1, 1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.transfer(cmd.Context(), func(eng builder, s session.Session, sink event.Sink) error {
				digest, err := eng.PushImage(cmd.Context(), args[0], s, sink)
				if err == nil {
					fmt.Fprintln(c.out, digest)
				}
				return err
			})
		},
	}
}

func newImagePull(c *cli) *cobra.Command {
	var platforms []graph.Platform
	cmd := &cobra.Command{Use: "pull [OPTIONS] IMAGE", Short: "Pull an image from its registry", Args: args(1, 1, "one image")}
	parsedFlag(cmd.Flags(), spec{"platform", "list", "", "Platforms to pull (default that of this machine)"}, parsePlatforms, func(p []graph.Platform) { platforms = append(platforms, p...) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.transfer(cmd.Context(), func(eng builder, s session.Session, sink event.Sink) error {
			im, err := eng.PullImage(cmd.Context(), args[0], platforms, s, sink)
			if err == nil {
				fmt.Fprintln(c.out, im.ID)
			}
			return err
		})
	}
	return cmd
}

func newImageRemove(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] IMAGE [IMAGE...]", Short: "Remove images", Aliases: []string{"remove"}, Args: args(1, -1, "at least one image")}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "An image that does not exist is no error")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return c.with(cmd.Context(), func(eng builder) error {
			for _, name := range names {
				err := eng.RemoveImage(cmd.Context(), name)
				if err != nil && !(force && diag.KindOf(err) == diag.NotFound) {
					return err
				}
				if err == nil {
					fmt.Fprintln(c.out, name)
				}
			}
			return nil
		})
	}
	return cmd
}

func newImagePrune(c *cli) *cobra.Command {
	var until time.Duration
	var dry, explain bool
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove images without a name", Args: args(0, 0, "no arguments"),
		Long: "Remove images that nobody has named, and those whose name was given to a newer image. What cached results\nhave of their layers stays: see strata prune.",
	}
	fs := cmd.Flags()
	parsedFlag(fs, spec{"until", "age", "", "Remove only what was not used for so long, such as 24h or 7d"}, parseAge, func(d time.Duration) { until = d })
	fs.BoolVar(&dry, "dry-run", false, "Remove nothing; say what would be removed")
	fs.BoolVar(&explain, "explain", false, "Say why each thing is removed")
	fs.BoolP("force", "f", false, "Accepted for compatibility; prune never asks")
	all := fs.BoolP("all", "a", false, "")
	fs.Lookup("all").Hidden = true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *all {
			return invalid("strata image prune removes images without a name only").
				WithHint("remove images by name: strata image rm NAME...\nall of them: strata image rm $(strata image ls -q)")
		}
		return c.with(cmd.Context(), func(eng builder) error {
			r, err := eng.PruneImages(cmd.Context(), until, dry)
			if err != nil {
				return err
			}
			return c.listPruned(r, dry, explain)
		})
	}
	return cmd
}

func newImageTag(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE NAME", Short: "Give an image another name", Args: args(2, 2, "an image and a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(eng builder) error { return eng.TagImage(cmd.Context(), args[0], args[1]) })
		},
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// shortID is the first 12 digits of a digest.
func shortID(id string, full bool) string {
	if full {
		return id
	}
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// ago says how long ago something was.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	for _, u := range []struct {
		d    time.Duration
		name string
	}{{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {7 * 24 * time.Hour, "week"}, {24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(d / u.d); n > 1 || n == 1 && u.name != "year" {
			if n == 1 {
				return "1 " + u.name + " ago"
			}
			return fmt.Sprintf("%d %ss ago", n, u.name)
		}
	}
	return "now"
}

// bytesText is a size in decimal units, as Docker shows them.
func bytesText(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if f < 999.5 {
			break
		}
		f, unit = f/1000, u
	}
	return fmt.Sprintf("%.3g%s", f, unit)
}
