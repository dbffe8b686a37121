package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/pack"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
)

func newLayer(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use: "layer COMMAND", Short: "Work with layers outside of the store", RunE: group, Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newLayerCreate(c))
	return cmd
}

// workspace gives f what reads and writes images without the engine.
func (c *cli) workspace(schema1 bool, f func(*pack.Workspace) error) (err error) {
	hosts, err := registry.LoadHosts(c.config)
	if err != nil {
		return err
	}
	client := registry.New(registry.Config{Hosts: hosts, Credentials: registry.DockerCredentials(""), Log: c.logger()})
	defer client.Close()
	w := pack.New(pack.Options{Registry: client, Schema1: schema1, Store: func(ctx context.Context, name string, file *os.File) error {
		return c.with(ctx, func(eng builder) error { return eng.SaveImages(ctx, file, []string{name}, "oci") })
	}})
	defer func() { err = errors.Join(err, w.Close()) }()
	return f(w)
}

// content are the flags that say how directories become layers.
type content struct {
	opt      layer.CreateOptions
	owner    string
	metadata string
	epoch    string
}

func (s *content) flags(fs *pflag.FlagSet) {
	fs.StringVar(&s.opt.Prefix, "prefix", "", "Directory of the image that the content goes to")
	fs.StringVar(&s.owner, "owner", "0:0", "Owner of everything, as UID:GID, or keep")
	fs.StringArrayVar(&s.opt.Exclude, "exclude", nil, "Leave out what matches a pattern, and what is below it: '*.o', 'cache', '**/.git'")
	fs.StringVar(&s.metadata, "metadata", "", "File with a rule on each line: PATTERN uid=N gid=N mode=0755 mtime=N exclude")
	fs.BoolVar(&s.opt.UserXattrs, "xattrs", false, "Keep the attributes user.* of files")
	fs.StringVar(&s.epoch, "source-date-epoch", "", "Latest time of files and of the image, in seconds since 1970 (default $SOURCE_DATE_EPOCH, else 0)")
}

// read checks the flags, and reads the files that they name.
func (s *content) read() (layer.TarOptions, error) {
	opt := layer.TarOptions{UserXattrs: s.opt.UserXattrs}
	if s.owner == "keep" {
		s.opt.KeepOwner = true
	} else if uid, gid, ok := strings.Cut(s.owner, ":"); ok {
		u, err1 := strconv.ParseUint(uid, 10, 32)
		g, err2 := strconv.ParseUint(gid, 10, 32)
		if err1 != nil || err2 != nil {
			return opt, invalid("--owner %s: it must be UID:GID or keep", s.owner)
		}
		s.opt.Owner = layer.Owner{UID: uint32(u), GID: uint32(g)}
	} else {
		return opt, invalid("--owner %s: it must be UID:GID or keep", s.owner)
	}
	if s.metadata != "" {
		text, err := os.ReadFile(s.metadata)
		if err != nil {
			return opt, diag.Errorf(diag.NotFound, "--metadata: %w", err)
		}
		if s.opt.Rules, err = layer.ParseRules(s.metadata, text); err != nil {
			return opt, err
		}
	}
	epoch, err := parseEpoch(firstOf(s.epoch, os.Getenv("SOURCE_DATE_EPOCH"), "0"))
	if err != nil {
		return opt, diag.Errorf(diag.Invalid, "source-date-epoch: %w", err)
	}
	opt.Epoch = epoch
	return opt, nil
}

func newLayerCreate(c *cli) *cobra.Command {
	var s content
	var path string
	var comp layer.Compression
	cmd := &cobra.Command{
		Use: "create [OPTIONS] DIR", Short: "Make a layer of a directory or a file", Args: args(1, 1, "a directory or a file"),
		Long: "Make a layer of a directory or a file. The same content gives the same bytes on every machine, whoever asks. Without --output only\n" +
			"the digest is computed. It prints the layer's diff_id, and as JSON also the digest and size of what was written.",
		Example: "  strata layer create --prefix opt/app --exclude '**/*.map' -o app.tar dist",
	}
	s.flags(cmd.Flags())
	cmd.Flags().StringVarP(&path, "output", "o", "", "File to write; - is standard output")
	parsedFlag(cmd.Flags(), spec{"compression", "type", "uncompressed", "Compression of the file: uncompressed, gzip or zstd, as gzip:9 with a level"}, parseCompression, func(v layer.Compression) { comp = v })
	asJSON := cmd.Flags().Bool("json", false, "Print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opt, err := s.read()
		if err != nil {
			return err
		}
		src, err := layer.FromPath(args[0], s.opt)
		if err != nil {
			return err
		}
		defer src.Close()
		sum := &counter{}
		var v *layer.Virtual
		tar := func(w io.Writer) error {
			sum.reset(w)
			z, err := layer.NewCompressor(sum, comp)
			if err != nil {
				return err
			}
			v, err = layer.NewVirtual(cmd.Context(), src.Entries, opt, z)
			return errors.Join(err, z.Close())
		}
		switch path {
		case "":
			err = tar(io.Discard)
		case "-":
			return tar(c.out)
		default:
			err = outfile.Write(path, tar)
		}
		if err != nil {
			return err
		}
		if *asJSON {
			mediaType, err := layer.MediaType(comp.Type, false)
			if err != nil {
				return err
			}
			return printJSON(c.out, map[string]any{"diffID": v.DiffID, "digest": sum.digest(), "size": sum.n, "mediaType": mediaType, "entries": v.Stats.Entries})
		}
		fmt.Fprintln(c.out, v.DiffID)
		return nil
	}
	return cmd
}

// parseCompression reads TYPE or TYPE:LEVEL.
func parseCompression(s string) (layer.Compression, error) {
	name, level, ok := strings.Cut(s, ":")
	t, err := layer.ParseType(name)
	if err != nil {
		return layer.Compression{}, err
	}
	c := layer.Compression{Type: t}
	if ok {
		if c.Level, err = strconv.Atoi(level); err != nil {
			return c, invalid("the level must be a number")
		}
	}
	return c, nil
}

// destination are the flags that say where an image goes.
type destination struct {
	path, format string
	tags         []string
	push, load   bool
	compression  *layer.Compression
	json         bool
	platform     graph.Platform
	schema1      bool
}

func (d *destination) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&d.path, "output", "o", "", "File or directory to write; - is standard output")
	parsedFlag(fs, spec{"format", "format", "oci-archive", "Format of --output: " + strings.Join(pack.Formats(), ", ")}, parseFormat, func(s string) { d.format = s })
	fs.StringArrayVarP(&d.tags, "tag", "t", nil, "Name of the image; the tag 'auto' is made of its digest")
	fs.BoolVar(&d.push, "push", false, "Send the image to the registry that --tag names; what is there already is neither sent nor made")
	fs.BoolVar(&d.load, "load", false, "Put the image into the store")
	parsedFlag(fs, spec{"compression", "type", "", "Compression of all layers: gzip, zstd or uncompressed, as gzip:9 with a level (default: keep, gzip for new ones)"}, parseCompression, func(v layer.Compression) { d.compression = &v })
	fs.BoolVar(&d.json, "json", false, "Print what was written as JSON")
}

func (d *destination) reading(fs *pflag.FlagSet) { d.readingFrom(fs, "that of this machine") }

func (d *destination) readingAll(fs *pflag.FlagSet) { d.readingFrom(fs, "all") }

func (d *destination) readingFrom(fs *pflag.FlagSet, def string) {
	parsedFlag(fs, spec{"platform", "platform", "", "Platform of the image (default " + def + ")"}, parsePlatform, func(p graph.Platform) { d.platform = p })
	fs.BoolVar(&d.schema1, "schema1", false, "Read manifests of schema 1, whose content nobody can verify")
}

// write sends images to all destinations and prints the digest.
func (c *cli) write(ctx context.Context, w *pack.Workspace, d *destination, images []*pack.Image, t pack.Target) error {
	if d.path == "" && !d.push && !d.load {
		return diag.Errorf(diag.Invalid, "nothing says where the image goes").WithHint("use --output FILE, --push or --load")
	}
	t.Names, t.Compression = d.tags, d.compression
	var last *pack.Receipt
	send := func(t pack.Target) (err error) {
		last, err = w.Write(ctx, images, t)
		return err
	}
	if d.push {
		p := t
		p.Push = true
		if err := send(p); err != nil {
			return err
		}
	}
	if d.path != "" {
		p := t
		p.Path, p.Format = d.path, pack.Format(firstOf(d.format, "oci-archive"))
		if d.path == "-" {
			if f, ok := c.out.(*os.File); ok && isTerminal(f) {
				return diag.Errorf(diag.Invalid, "an archive is not written to a terminal").WithHint("give a file with --output")
			}
			p.Path, p.Out = "", c.out
		}
		if err := send(p); err != nil || d.path == "-" {
			return err
		}
	}
	if d.load {
		if err := c.loadImage(ctx, func(out io.Writer) error {
			p := t
			p.Format, p.Out = pack.OCIArchive, out
			return send(p)
		}); err != nil {
			return err
		}
	}
	if d.json {
		return printJSON(c.out, last)
	}
	for _, n := range last.Names {
		fmt.Fprintln(c.out, n)
	}
	fmt.Fprintln(c.out, last.Digest)
	if d.push {
		fmt.Fprintf(c.err, "sent %s, %s were there\n", bytesText(last.Sent), bytesText(last.Kept))
	}
	return nil
}

// loadImage gives an archive to the engine while it is written.
func (c *cli) loadImage(ctx context.Context, f func(io.Writer) error) error {
	return c.with(ctx, func(eng builder) error {
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := f(w)
			w.CloseWithError(err)
			done <- err
		}()
		_, err := eng.LoadImages(ctx, r)
		_ = r.CloseWithError(err) // it never fails
		return errors.Join(<-done, err)
	})
}

// configuration are the flags that change an image's configuration.
type configuration struct {
	change  pack.Change
	cmd     string
	entry   string
	created string
	labels  map[string]string
	arch    graph.Platform
	given   func(flag string) bool
}

func (f *configuration) flags(fs *pflag.FlagSet) {
	f.given = fs.Changed
	f.labels = map[string]string{}
	fs.StringArrayVarP(&f.change.Env, "env", "e", nil, "Set an environment variable: NAME=VALUE")
	fs.StringVar(&f.cmd, "cmd", "", "Arguments or command, as JSON or as words; \"\" is none")
	fs.StringVar(&f.entry, "entrypoint", "", "Entry point, as JSON or as words; it resets the command; \"\" is none")
	fs.StringVarP(&f.change.User, "user", "u", "", "User, as NAME or UID[:GID]")
	fs.StringVarP(&f.change.WorkingDir, "workdir", "w", "", "Working directory")
	labelFlag(fs, "Set a label: NAME[=VALUE]", f.labels)
	fs.StringArrayVar(&f.change.Ports, "expose", nil, "Port that the image listens on: 80 or 53/udp")
	fs.StringArrayVar(&f.change.Volumes, "volume", nil, "Directory with data of its own")
	fs.StringVar(&f.change.StopSignal, "stop-signal", "", "Signal that ends a container")
	fs.StringVar(&f.change.Author, "author", "", "Author of the image")
	fs.StringVar(&f.created, "created", "", "Time of the image: now, or seconds since 1970 (default that of --source-date-epoch)")
}

// read makes the change that the flags ask for.
func (f *configuration) read(epoch *time.Time) (pack.Change, error) {
	ch := f.change
	ch.Labels, ch.Created = f.labels, epoch
	var err error
	if f.given("cmd") { // else the base's stays
		if ch.Cmd, err = commandLine(f.cmd); err != nil {
			return ch, diag.Errorf(diag.Invalid, "--cmd: %w", err)
		}
	}
	if f.given("entrypoint") {
		if ch.Entrypoint, err = commandLine(f.entry); err != nil {
			return ch, diag.Errorf(diag.Invalid, "--entrypoint: %w", err)
		}
	}
	for _, e := range ch.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return ch, invalid("--env %s: it must be NAME=VALUE", e)
		}
	}
	switch f.created {
	case "":
	case "now":
		t := time.Now()
		ch.Created = &t
	default:
		if ch.Created, err = parseEpoch(f.created); err != nil {
			return ch, diag.Errorf(diag.Invalid, "--created %s: %w", f.created, err)
		}
	}
	ch.Platform = f.arch
	return ch, nil
}

// commandLine reads a JSON list, or words. The list is never nil.
func commandLine(s string) ([]string, error) {
	if !strings.HasPrefix(strings.TrimSpace(s), "[") {
		return strings.Fields(s), nil
	}
	out := []string{}
	if err := strictjson.Unmarshal([]byte(s), &out); err != nil {
		return nil, diag.Errorf(diag.Invalid, "%w", err)
	}
	return out, nil
}

// parseFormat reads the format of an archive. "docker" is what image save calls it.
func parseFormat(s string) (string, error) {
	if s == "docker" {
		return string(pack.DockerArchive), nil
	}
	return oneOf(pack.Formats()...)(s)
}
