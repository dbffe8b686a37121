package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/pack"
	"github.com/strata-build/strata/relayer"
)

// imageNames is the part of the help that says what IMAGE may be.
const imageNames = "IMAGE is a file or a directory (an OCI layout, an archive of docker save, skopeo's dir:), with :NAME behind it if it holds several;\n" +
	"an image of a registry; or store:NAME. Nothing here needs root, and only store: and --load need the engine."

func newImageAssemble(c *cli) *cobra.Command {
	var d destination
	var s content
	var f configuration
	var base string
	var most int
	how := pack.Follow
	cmd := &cobra.Command{
		Use: "assemble [OPTIONS] LAYER [LAYER...]", Short: "Make an image of layers, without a Dockerfile", Args: args(1, -1, "at least one layer"),
		Long: "Make an image of layers, bottom first. LAYER is a directory, which becomes a layer as with 'strata layer create'; DIR=PREFIX for one of\n" +
			"another place in the image; a tar, compressed or not, which stays as it is; or IMAGE@DIGEST, one layer of an image.\n" +
			"With --base, a directory is resolved against what is below it. " + conflictHelp + "\n" + imageNames,
		Example: "  strata image assemble -o app.tar -t app:1 --entrypoint /bin/app rootfs dist=opt/app",
	}
	fs := cmd.Flags()
	d.flags(fs)
	s.flags(fs)
	f.flags(fs)
	parsedFlag(fs, spec{"platform", "platform", "", "Platform of the image (default that of this machine, or of the base)"}, graph.ParsePlatform, func(p graph.Platform) { f.arch = p })
	fs.StringVar(&base, "base", "", "Image that the layers go on")
	conflictFlag(fs, &how)
	fs.IntVar(&most, "max-layers", image.MaxLayers, "Merge the upper layers if there are more than this")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return c.workspace(false, func(w *pack.Workspace) error {
			ctx := cmd.Context()
			opt, err := s.read()
			if err != nil {
				return err
			}
			change, err := f.read(opt.Epoch)
			if err != nil {
				return err
			}
			var on *pack.Image
			if base != "" {
				if on, err = c.one(ctx, w, base, f.arch); err != nil {
					return err
				}
			}
			var layers []*pack.Layer
			for _, n := range names {
				l, err := givenLayer(ctx, w, n, &s, opt)
				if err == nil && on != nil {
					l, err = w.LayerOnto(ctx, pack.Assemble(on, layers, pack.Change{}), l, how)
				}
				if err != nil {
					return err
				}
				layers = append(layers, l)
			}
			if on != nil && len(on.Layers) >= most {
				return diag.Errorf(diag.Invalid, "the base has %d layers, and --max-layers is %d", len(on.Layers), most)
			} else if on != nil {
				most -= len(on.Layers)
			}
			if layers, err = w.Limit(ctx, layers, most); err != nil {
				return err
			}
			return c.write(ctx, w, &d, []*pack.Image{pack.Assemble(on, layers, change)}, pack.Target{})
		})
	}
	return cmd
}

// one opens an image for one platform, and reports what of it the result will not have.
func (c *cli) one(ctx context.Context, w *pack.Workspace, name string, p graph.Platform) (*pack.Image, error) {
	src, err := w.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	im, err := src.Image(ctx, p)
	if err != nil {
		return nil, err
	}
	var others []string
	for _, q := range src.Platforms() {
		if graph.FormatPlatform(q) != graph.FormatPlatform(im.Platform) {
			others = append(others, graph.FormatPlatform(q))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(c.err, "warning: the result is for %s only; %s also has %s\n", graph.FormatPlatform(im.Platform), name, strings.Join(others, ", "))
	}
	c.tellAttestations(src)
	return im, nil
}

// tellAttestations reports attestations that stay behind: they are about other bytes than will be written.
func (c *cli) tellAttestations(src *pack.Source) {
	if src.Attestations > 0 {
		fmt.Fprintf(c.err, "warning: %d attestations of %s are left out: they are about other bytes\n", src.Attestations, src.Name)
	}
}

// givenLayer makes the layer that an argument names.
func givenLayer(ctx context.Context, w *pack.Workspace, name string, s *content, opt layer.TarOptions) (*pack.Layer, error) {
	path, prefix, hasPrefix := strings.Cut(name, "=")
	if _, err := os.Stat(name); err == nil {
		path, hasPrefix = name, false
	}
	st, err := os.Stat(path)
	switch at := strings.LastIndex(name, "@sha256:"); {
	case err == nil && (st.IsDir() || hasPrefix):
		o := s.opt
		if hasPrefix {
			o.Prefix = prefix
		}
		src, err := layer.FromPath(path, o)
		if err != nil {
			return nil, err
		}
		w.Keep(src.Close)
		return pack.NewLayer(filepath.Base(path), src.Entries, opt), nil
	case err == nil:
		return w.TarLayer(ctx, path)
	case at > 0:
		im, err := w.Image(ctx, name[:at], graph.Platform{})
		if err != nil {
			return nil, err
		}
		return im.Layer(graph.Digest(name[at+1:]))
	}
	return nil, diag.Errorf(diag.NotFound, "%s: there is no such directory or file", name).WithHint("a layer of an image is IMAGE@sha256:…")
}

func newImageLayers(c *cli) *cobra.Command {
	var d destination
	var asJSON, files bool
	cmd := &cobra.Command{
		Use: "layers [OPTIONS] IMAGE", Short: "List the layers of an image, bottom first", Args: args(1, 1, "one image"),
		Long: "List the layers of an image, bottom first.\n\n" + imageNames,
	}
	d.reading(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print JSON")
	cmd.Flags().BoolVar(&files, "files", false, "List what is in each layer too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			im, err := w.Image(cmd.Context(), args[0], d.platform)
			if err != nil {
				return err
			}
			list, err := w.Describe(cmd.Context(), im, files)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.out, list)
			}
			return listLayers(c.out, list)
		})
	}
	return cmd
}

func listLayers(out io.Writer, list []pack.Description) error {
	t := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "LAYER\tDIGEST\tDIFF ID\tSIZE\tWHAT")
	for i, l := range list {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", i+1, shortID(l.Digest.String(), false), shortID(l.DiffID.String(), false), bytesText(l.Size), oneLine(firstOf(l.Name, l.CreatedBy)))
		for _, f := range l.Files {
			fmt.Fprintf(t, "\t\t\t%s\t%s\n", bytesText(f.Size), f.Path)
		}
	}
	return t.Flush()
}

// conflictHelp is the part of the help about files that meet others.
const conflictHelp = "Directories that the image has keep their mode and owner. Below a symlink to a directory, files go where it points.\n" +
	"Other --conflict values: keep drops what the image has in another form; error refuses it; replace writes the files as they\n" +
	"are, without reading the image, and puts directories in the place of symlinks.\n"

func conflictFlag(fs *pflag.FlagSet, how *pack.Conflict) {
	parsedFlag(fs, spec{"conflict", "how", string(pack.Follow), "What to do where the image has something already: " + strings.Join(pack.Conflicts(), ", ")},
		oneOf(pack.Conflicts()...), func(s string) { *how = pack.Conflict(s) })
}

func newImagePushOnto(c *cli) *cobra.Command {
	var d destination
	var s content
	var f configuration
	var skip bool
	how := pack.Follow
	cmd := &cobra.Command{
		Use: "push-onto [OPTIONS] PARENT DIR", Short: "Put the files of a directory onto an image, as one more layer", Args: args(2, 2, "an image and a directory"),
		Long: "Put the files of a directory onto an image, as one more layer. With --skip-existing, what the image shows exactly so already (type, mode,\n" +
			"owner, size, content, attributes and link target; not times) is left out.\n" + conflictHelp + "\n" + strings.Replace(imageNames, "IMAGE", "PARENT", 1),
		Example: "  strata image push-onto --skip-existing --prefix opt/app -o new.tar debian:12 dist",
	}
	d.flags(cmd.Flags())
	d.reading(cmd.Flags())
	s.flags(cmd.Flags())
	f.flags(cmd.Flags())
	conflictFlag(cmd.Flags(), &how)
	cmd.Flags().BoolVar(&skip, "skip-existing", false, "Leave out what the image has already")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			opt, err := s.read()
			if err != nil {
				return err
			}
			change, err := f.read(opt.Epoch)
			if err != nil {
				return err
			}
			im, err := c.one(cmd.Context(), w, args[0], d.platform)
			if err != nil {
				return err
			}
			src, err := layer.FromPath(args[1], s.opt)
			if err != nil {
				return err
			}
			w.Keep(src.Close)
			entries, err := w.Onto(cmd.Context(), im, src.Entries, how)
			if err != nil {
				return err
			}
			if skip {
				if entries, err = w.Missing(cmd.Context(), im, entries); err != nil {
					return err
				}
			}
			fmt.Fprintf(c.err, "%d of %d entries are new\n", len(entries), len(src.Entries))
			var layers []*pack.Layer
			if len(entries) > 0 {
				layers = append(layers, pack.NewLayer(filepath.Base(args[1]), entries, opt))
			}
			if n := len(im.Layers) + len(layers); n > image.MaxLayers {
				return diag.Errorf(diag.Invalid, "the image would have %d layers; Docker loads at most %d", n, image.MaxLayers).
					WithHint("cut the parent into fewer layers first: strata image relayer --max-layers %d", image.MaxLayers-1)
			}
			return c.write(cmd.Context(), w, &d, []*pack.Image{pack.Assemble(im, layers, change)}, pack.Target{})
		})
	}
	return cmd
}

// explainLayers shows what each layer of a relayered image costs.
func explainLayers(w io.Writer, im *pack.Image) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintf(t, "LAYERS OF %s\tPACKAGES\tSIZE\tUPDATES A YEAR\tSENT FOR EACH IMAGE\n", graph.FormatPlatform(im.Platform))
	expected, all := 0.0, int64(0)
	for _, l := range im.Layers {
		if l.Cut == nil {
			continue
		}
		updates := fmt.Sprintf("%.1f", l.Cut.Updates)
		if l.Cut.Kind == "top" {
			updates = "with each image"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", l.Name, len(l.Cut.Components), bytesText(l.Cut.Bytes), updates, bytesText(int64(l.Cut.Expected)))
		expected += l.Cut.Expected
		all += l.Cut.Bytes
	}
	fmt.Fprintf(t, "all\t\t%s\t\t%s\n", bytesText(all), bytesText(int64(expected)))
	return t.Flush()
}

func newImageRelayer(c *cli) *cobra.Command {
	var d destination
	var previous string
	var generators []string
	var opt relayer.Options
	cmd := &cobra.Command{
		Use: "relayer [OPTIONS] IMAGE", Short: "Cut an image into layers by the packages in it", Args: args(1, 1, "one image"),
		Long: "Cut an image into layers by the packages in it, so that an update of one sends its layer and the top one only. The files stay as they are.\n" +
			"All platforms come along unless --platform names one.\n" +
			"The plan is kept in annotations; --previous keeps every package in the layer where the image before had it, and takes the blobs of what did\n" +
			"not change from there.\n\n" + imageNames,
		Example: "  strata image relayer --push -t registry:5000/app:2 --previous registry:5000/app:1 app.tar",
	}
	fs := cmd.Flags()
	d.flags(fs)
	d.readingAll(fs)
	fs.StringVar(&previous, "previous", "", "Image whose plan is kept")
	fs.StringArrayVar(&generators, "generator", nil, "What to look for, in this order: xattr, dpkg, apk, rpm, pacman, nix, python, node, binary, big (default all)")
	parsedFlag(fs, spec{"algorithm", "name", "", "How packages are put into layers: " + strings.Join(relayer.Algorithms(), ", ") + " (default origin, auto for Nix)"}, oneOf(relayer.Algorithms()...), func(s string) { opt.Algorithm = s })
	explain := fs.Bool("explain", false, "Only show the layers, what is in them, and how many bytes an update of the image would send on average")
	fs.IntVar(&opt.MaxLayers, "max-layers", relayer.DefaultMaxLayers, "Most layers that the image may have")
	epoch := fs.String("source-date-epoch", "", "Latest time of files, in seconds since 1970 (default $SOURCE_DATE_EPOCH, else no limit)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, g := range generators {
			more, err := relayer.ParseGenerator(g, os.ReadFile)
			if err != nil {
				return err
			}
			opt.Generators = append(opt.Generators, more...)
		}
		if text := firstOf(*epoch, os.Getenv("SOURCE_DATE_EPOCH")); text != "" {
			var err error
			if opt.Epoch, err = parseEpoch(text); err != nil {
				return diag.Errorf(diag.Invalid, "source-date-epoch: %w", err)
			}
		}
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			src, err := w.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			images, err := src.Chosen(cmd.Context(), d.platform)
			if err != nil {
				return err
			}
			c.tellAttestations(src)
			var t pack.Target
			for i, im := range images {
				o := opt
				o.Explain = *explain
				if previous != "" {
					before, err := w.Image(cmd.Context(), previous, im.Platform)
					if err != nil {
						return err
					}
					if o.Previous, err = before.Plan(); err != nil {
						return diag.Errorf(diag.KindOf(err), "%s: %w", previous, err)
					}
					t.Reuse = append(t.Reuse, before)
				}
				if images[i], err = w.Relayer(cmd.Context(), im, o); err != nil {
					return err
				}
				if *explain {
					if err := explainLayers(c.out, images[i]); err != nil {
						return err
					}
				}
			}
			if *explain {
				return nil
			}
			return c.write(cmd.Context(), w, &d, images, t)
		})
	}
	return cmd
}

func newImageRebase(c *cli) *cobra.Command {
	var d destination
	var from, to string
	cmd := &cobra.Command{
		Use: "rebase [OPTIONS] IMAGE", Short: "Move an image from one base image to another", Args: args(1, 1, "one image"),
		Long: "Move an image from one base image to another: its lowest layers, which must be those of the old base, become those of the new one. Settings\n" +
			"that come from the old base become those of the new. No layer is read.\n\n" + imageNames,
		Example: "  strata image rebase --from debian:12.1 --to debian:12.2 --push -t registry:5000/app:1 registry:5000/app:1",
	}
	d.flags(cmd.Flags())
	d.reading(cmd.Flags())
	cmd.Flags().StringVar(&from, "from", "", "The base image that the image has")
	cmd.Flags().StringVar(&to, "to", "", "The base image that it gets")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if from == "" || to == "" {
			return diag.Errorf(diag.Invalid, "--from and --to are needed")
		}
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			var three [3]*pack.Image
			for i, n := range []string{args[0], from, to} {
				var err error
				open := w.Image
				if i == 0 {
					open = func(ctx context.Context, name string, p graph.Platform) (*pack.Image, error) {
						return c.one(ctx, w, name, p)
					}
				}
				if three[i], err = open(cmd.Context(), n, d.platform); err != nil {
					return err
				}
			}
			im, err := pack.Rebase(three[0], three[1], three[2])
			if err != nil {
				return err
			}
			return c.write(cmd.Context(), w, &d, []*pack.Image{im}, pack.Target{})
		})
	}
	return cmd
}

func newImageConvert(c *cli) *cobra.Command {
	var d destination
	cmd := &cobra.Command{
		Use: "convert [OPTIONS] IMAGE", Short: "Write an image in another format or compression", Args: args(1, 1, "one image"),
		Long: "Write an image in another format or compression, or copy it to another registry. All platforms come along unless --platform names one.\n" +
			"Without --platform and --compression, everything is copied as it is, with its digest: attestations, annotations and artifacts of any\n" +
			"type too, except into Docker's formats and dir.\n\n" + imageNames,
		Example: "  strata image convert --format docker-archive -o app.tar registry:5000/app:1\n  strata image convert --compression zstd --push -t registry:5000/app:zstd app.tar",
	}
	d.flags(cmd.Flags())
	d.readingAll(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			src, err := w.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			exact := src.Exact() && d.platform.OS == "" && d.compression == nil
			if exact && (d.path == "" || d.format == "" || d.format == string(pack.OCI) || d.format == string(pack.OCIArchive)) {
				return c.write(cmd.Context(), w, &d, nil, pack.Target{Exact: src})
			}
			images, err := src.Chosen(cmd.Context(), d.platform)
			if err != nil {
				return err
			}
			c.tellAttestations(src)
			return c.write(cmd.Context(), w, &d, images, pack.Target{Index: src.Index})
		})
	}
	return cmd
}

func newImageExport(c *cli) *cobra.Command {
	var d destination
	var path string
	var flatten bool
	cmd := &cobra.Command{
		Use: "export [OPTIONS] IMAGE", Short: "Write the files of an image as tars", Args: args(1, 1, "one image"),
		Long: "Write the files of an image as tars: one for each layer into a directory, named by number and diff_id, or with --flatten a single one of what\n" +
			"the image shows.\n\n" + imageNames,
		Example: "  strata image export --flatten -o rootfs.tar debian:12",
	}
	d.reading(cmd.Flags())
	cmd.Flags().StringVarP(&path, "output", "o", "-", "File or directory to write; - is standard output")
	cmd.Flags().BoolVar(&flatten, "flatten", false, "Write one tar of the merged file system")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f, ok := c.out.(*os.File); ok && path == "-" && isTerminal(f) {
			return diag.Errorf(diag.Invalid, "an archive is not written to a terminal").WithHint("give a file with --output")
		}
		if path == "-" && !flatten {
			return diag.Errorf(diag.Invalid, "the layers need a directory to go to").WithHint("use --output DIR, or --flatten for one tar")
		}
		return c.workspace(d.schema1, func(w *pack.Workspace) error {
			im, err := w.Image(cmd.Context(), args[0], d.platform)
			switch {
			case err != nil:
				return err
			case !flatten:
				return w.ExportLayers(cmd.Context(), im, path)
			case path == "-":
				return w.Flatten(cmd.Context(), im, c.out)
			}
			return pack.WriteFile(path, func(out io.Writer) error { return w.Flatten(cmd.Context(), im, out) })
		})
	}
	return cmd
}
