package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/cmd/strata/progress"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
)

// buildFlags are the flags of build that are not fields of the request.
type buildFlags struct {
	req        engine.Request
	file       string
	secrets    map[string]session.SecretSource
	ssh        map[string][]string
	outputs    []output
	cacheFrom  []engine.CacheSpec
	cacheTo    []engine.CacheSpec
	push, load bool
	call       call
	epoch      string
	policies   []string // files
	iidFile    string
	metaFile   string
	progress   string
	quiet      bool
	unset      []string // build arguments whose values are not in the environment
}

func newBuild(c *cli) *cobra.Command {
	b := &buildFlags{secrets: map[string]session.SecretSource{}, ssh: map[string][]string{}, progress: string(progress.Auto)}
	b.req.BuildArgs, b.req.BuildContexts, b.req.Labels = map[string]string{}, map[string]string{}, map[string]string{}
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Long: "Build an image from a Dockerfile.\n\n" +
			"The build context is a directory, a git repository or archive at a URL, or an archive on standard input (-).\n" +
			"Without --output, the image is kept in Strata's own store, under the names that --tag gives.",
		Example: "  strata build -t app .\n" +
			"  strata build -t registry.example.com/app:1.2 --push https://github.com/example/app.git#v1.2\n" +
			"  strata build --target bin -o dist .",
		Args: args(1, 1, "a build context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !b.req.Check && (b.req.Call == "" || b.req.Call == "build") { // a question needs no rights
				if err := needsRoot(cmd); err != nil {
					return err
				}
			}
			return b.run(cmd.Context(), c, args[0])
		},
	}
	fs := cmd.Flags()
	b.sourceFlags(fs)
	b.imageFlags(fs)
	b.attestFlags(fs)
	b.accessFlags(fs)
	b.limitFlags(fs)
	b.resultFlags(fs)
	return cmd
}

func (b *buildFlags) sourceFlags(fs *pflag.FlagSet) {
	r := &b.req
	fs.StringVarP(&b.file, "file", "f", "", `Dockerfile to use, or "-" for standard input (default "PATH/Dockerfile")`)
	fs.StringVar(&r.Target, "target", "", "Stage to build")
	fs.Var(&parsed{kind: "list", set: func(s string) error {
		k, v, ok, err := parseVariable(s)
		switch {
		case err != nil:
		case ok:
			r.BuildArgs[k] = v
		default:
			b.unset = append(b.unset, k)
		}
		return err
	}}, "build-arg", "Set a build argument: NAME=VALUE, or NAME for its value in the environment")
	pairFlag(fs, "build-context", "Add a named context: NAME=PATH, URL, docker-image://REF or oci-layout://PATH", r.BuildContexts)
	parsedFlag(fs, spec{"platform", "list", "", "Platforms to build for, such as linux/amd64,linux/arm64"}, parsePlatforms, func(p []graph.Platform) { r.Platforms = append(r.Platforms, p...) })
	fs.BoolVar(&r.NoCache, "no-cache", false, "Run every step, even if its result is known")
	fs.StringSliceVar(&r.NoCacheFilter, "no-cache-filter", nil, "Run every step of these stages")
	fs.BoolVar(&r.Pull, "pull", false, "Look for newer versions of the base images")
	fs.BoolVar(&r.Squash, "squash", false, "Merge all layers above the base image into one")
	fs.StringArrayVar(&r.OutputLayers, "output-layers", nil, "Let a stage make its own layers in a directory, as OUTPUT does: STAGE:/DIR[,mode=append]")
	fs.StringVar(&r.Relayer, "relayer", "", "Divide the image into layers by packages and other components: a GENERATOR[,NAME=VALUE], auto if none is named")
	fs.Lookup("relayer").NoOptDefVal = "auto"
	fs.BoolVar(&r.VerifyOutput, "verify-output", false, "Make the layers of OUTPUT again without input, and compare")
	fs.BoolVar(&r.Check, "check", false, "Check the Dockerfile for mistakes and build nothing")
	parsedFlag(fs, spec{"call", "method", "", "What to do: build, check, outline or targets[,format=text|json][,ignorestatus]"}, parseCall, func(c call) { b.call, r.Call = c, c.name })
}

// entitlements are what steps may be allowed besides.
var entitlements = []string{"network.host", "security.insecure", "device"}

func parseAllowed(s string) ([]string, error) {
	list := strings.Split(s, ",")
	for _, e := range list {
		if _, err := oneOf(entitlements...)(e); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// call is what --call asks for.
type call struct {
	name         string
	json         bool // print the answer as BuildKit's clients do with format=json
	ignoreStatus bool // findings are not a failure
}

func parseCall(s string) (c call, err error) {
	name, rest, _ := strings.Cut(s, ",")
	if c.name, err = oneOf("build", "check", "outline", "targets")(name); err != nil || rest == "" {
		return c, err
	}
	parts, err := fields(rest)
	for _, f := range parts {
		switch {
		case f.name == "format" && (f.value == "json" || f.value == "text"):
			c.json = f.value == "json"
		case f.name == "format":
			return c, invalid("unknown format %q: it must be text or json", f.value)
		case f.name == "ignorestatus" && (!f.hasValue || f.value == "true" || f.value == "false"):
			c.ignoreStatus = f.value != "false"
		default:
			known := []string{"format", "ignorestatus"}
			return c, suggest(invalid("unknown attribute %q: it must be one of %s", f.name, strings.Join(known, ", ")), f.name, known)
		}
	}
	return c, err
}

func (b *buildFlags) imageFlags(fs *pflag.FlagSet) {
	r := &b.req
	fs.StringArrayVarP(&r.Tags, "tag", "t", nil, `Name of the image: "name" or "name:tag"`)
	labelFlag(fs, "Set a label of the image: NAME[=VALUE]", r.Labels)
	fs.StringArrayVar(&r.Annotations, "annotation", nil, "Add an annotation to the manifest: [TYPE:]NAME=VALUE")
	fs.StringVar(&b.epoch, "source-date-epoch", "", "Time of the image and its files, in seconds since 1970 (default $SOURCE_DATE_EPOCH)")
}

func (b *buildFlags) accessFlags(fs *pflag.FlagSet) {
	r := &b.req
	fs.Var(&parsed{kind: "list", set: func(s string) error {
		id, src, err := parseSecret(s)
		if err == nil {
			b.secrets[id] = src
		}
		return err
	}}, "secret", "Give a secret to the build: id=NAME[,src=FILE|,env=VARIABLE]")
	fs.Var(&parsed{kind: "list", set: func(s string) error {
		id, paths, err := parseSSH(s)
		if err == nil {
			b.ssh[id] = paths
		}
		return err
	}}, "ssh", "Give an ssh agent to the build: default or ID[=SOCKET|KEY[,KEY]]")
	parsedFlag(fs, spec{"network", "mode", "", "Network of RUN steps: default, none or host"}, parseNetwork, func(n graph.Network) { r.Network = n })
	parsedFlag(fs, spec{"add-host", "list", "", "Add a line to /etc/hosts of RUN steps: HOST:IP"}, parseHost, func(h graph.HostIP) { r.ExtraHosts = append(r.ExtraHosts, h) })
	fs.StringArrayVar(&b.policies, "source-policy", nil, "Allow, deny or replace sources as the rules of a JSON file say (default $EXPERIMENTAL_BUILDKIT_SOURCE_POLICY)")
	parsedFlag(fs, spec{"allow", "list", "", "Allow what is refused by default: " + strings.Join(entitlements, ", ")}, parseAllowed, func(e []string) { r.Allow = append(r.Allow, e...) })
}

func (b *buildFlags) limitFlags(fs *pflag.FlagSet) {
	l := &b.req.Limits
	memoryFlag(fs, "Memory limit of each step", &l.Memory)
	parsedFlag(fs, spec{"memory-swap", "bytes", "", "Limit of memory and swap together; -1 is no limit"}, func(s string) (int64, error) {
		if s == "-1" {
			return -1, nil
		}
		return parseBytes(s)
	}, func(n int64) { l.MemorySwap = n })
	fs.Uint64VarP(&l.CPUShares, "cpu-shares", "c", 0, "CPU shares, a relative weight")
	fs.Uint64Var(&l.CPUPeriod, "cpu-period", 0, "Period of the CPU limit in microseconds")
	fs.Int64Var(&l.CPUQuota, "cpu-quota", 0, "CPU time in each period in microseconds")
	fs.StringVar(&l.CPUSet, "cpuset-cpus", "", "CPUs to run on, such as 0-3 or 0,1")
	fs.StringVar(&l.Mems, "cpuset-mems", "", "Memory nodes to use, such as 0-3 or 0,1")
	fs.StringVar(&l.CgroupParent, "cgroup-parent", "", "Parent cgroup of the steps")
	bytesFlag(fs, "shm-size", "Size of /dev/shm", &l.ShmSize)
	parsedFlag(fs, spec{"ulimit", "list", "", "Set a resource limit: NAME=SOFT[:HARD]"}, parseUlimit, func(u graph.Ulimit) { l.Ulimits = append(l.Ulimits, u) })
}

func (b *buildFlags) resultFlags(fs *pflag.FlagSet) {
	parsedFlag(fs, spec{"output,o", "list", "", "Where the result goes: a directory, - for a tar, or type=TYPE[,dest=PATH][,NAME=VALUE]"}, parseOutput,
		func(o output) { b.outputs = append(b.outputs, o) })
	parsedFlag(fs, spec{"cache-from", "list", "", "Find results in a cache: an image, or type=registry|local|s3|azblob[,NAME=VALUE]"}, parseCache,
		func(s engine.CacheSpec) { b.cacheFrom = append(b.cacheFrom, s) })
	parsedFlag(fs, spec{"cache-to", "list", "", "Write a cache: an image, or type=registry|local|inline|s3|azblob[,mode=max][,NAME=VALUE]"}, parseCache,
		func(s engine.CacheSpec) { b.cacheTo = append(b.cacheTo, s) })
	fs.BoolVar(&b.push, "push", false, "Push the image: the same as --output type=registry")
	fs.BoolVar(&b.load, "load", false, "Keep the image in Strata's store besides other outputs: the same as --output type=image")
	fs.StringVar(&b.iidFile, "iidfile", "", "Write the image's ID to a file")
	fs.StringVar(&b.metaFile, "metadata-file", "", "Write what is known of the result to a JSON file")
	parsedFlag(fs, spec{"progress", "mode", "auto", "How to show progress: auto, tty, plain, rawjson or quiet"}, oneOf(progress.Modes()...), func(s string) { b.progress = s })
	fs.BoolVarP(&b.quiet, "quiet", "q", false, "Show no progress, and print only the image's ID")
}

// run is the command.
func (b *buildFlags) run(ctx context.Context, c *cli, contextArg string) (err error) {
	src, err := newInputs(c, contextArg, b.file, b.req.BuildContexts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	b.req.Context, b.req.Dockerfile, b.req.BuildContexts = src.context, src.dockerfile, src.contexts
	b.req.LocalFile = src.context != "" && b.file == "-"
	targets, err := b.setOutputs(c)
	if err != nil {
		return err
	}
	if on, err := strconv.ParseBool(b.req.BuildArgs["BUILDKIT_INLINE_CACHE"]); err == nil && on { // as buildx and Docker take it
		b.cacheTo = append(b.cacheTo, engine.CacheSpec{Type: "inline", Attrs: map[string]string{}})
	}
	b.setCaches(c, src.dirs, targets)
	if b.req.Epoch, err = parseEpoch(firstOf(b.epoch, os.Getenv("SOURCE_DATE_EPOCH"))); err != nil {
		return diag.Errorf(diag.Invalid, "source-date-epoch %q: %s", firstOf(b.epoch, os.Getenv("SOURCE_DATE_EPOCH")), err)
	}
	if b.req.SourcePolicies, err = readPolicies(b.policies); err != nil {
		return err
	}
	if err := b.checkWritable(targets); err != nil {
		return err
	}
	sess, err := session.NewLocal(session.LocalOptions{
		Dirs: src.dirs, Secrets: b.secrets, SSH: b.ssh, Credential: registry.DockerCredentials(""), Outputs: targets,
	})
	if err != nil {
		return err
	}
	eng, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	mode := progress.Mode(b.progress)
	if b.quiet {
		mode = progress.Quiet
	}
	show := c.display(mode)
	for _, name := range b.unset {
		w := diag.Warning{Msg: fmt.Sprintf("--build-arg %s: %s is not set in the environment, so the argument is not given", name, name)}
		show.Sink().Emit(event.Event{Kind: event.Warn, Time: time.Now(), Warning: &w})
	}
	resp, err := eng.Build(ctx, b.req, sess, show.Sink())
	show.Close(err)
	if err != nil {
		return withTail(c.besideState(err, src.dirs["context"].Path), show)
	}
	return b.report(c, mode, resp)
}

// besideState explains that a context changes while it is read because Strata's own state is in it.
func (c *cli) besideState(err error, context string) error {
	d, ok := errors.AsType[*diag.Error](err)
	if !ok || d.Kind != diag.Conflict || context == "" {
		return err
	}
	dir, aerr := filepath.Abs(context)
	root, rerr := filepath.Abs(c.root)
	rel, lerr := filepath.Rel(dir, root)
	if errors.Join(aerr, rerr, lerr) != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return err
	}
	return d.WithHint("the build context has Strata's state in it: exclude %s in .dockerignore, or choose another --root", rel)
}

// withTail adds the last lines of the failed step to an error that has none.
func withTail(err error, show *progress.Display) error {
	d, ok := errors.AsType[*diag.Error](err)
	if !ok || len(d.Log) > 0 || d.Kind != diag.Failed {
		return err
	}
	return &diag.Error{Kind: d.Kind, Msg: err.Error(), At: d.At, Log: show.Tail(), Err: err}
}

// setOutputs gives every output its attributes and a number that names its destination in the session.
func (b *buildFlags) setOutputs(c *cli) (map[string]session.OutputTarget, error) {
	outs := b.outputs
	if b.push {
		outs = append(outs, output{kind: "registry", attrs: map[string]string{}})
	}
	if len(outs) == 0 || b.load {
		outs = append(outs, output{kind: "image", attrs: map[string]string{}})
	}
	targets, stdout := map[string]session.OutputTarget{}, 0
	for i, o := range outs {
		id := strconv.Itoa(i)
		switch tarless := o.attrs["tar"] == "false"; {
		case o.dest == "":
			id = ""
		case o.dest == "-":
			stdout++
			if f, ok := c.out.(*os.File); ok && isTerminal(f) {
				return nil, diag.Errorf(diag.Invalid, "--output: an archive is not written to a terminal").WithHint("send standard output to a file, or give dest=FILE")
			}
			targets[id] = session.OutputTarget{Stream: c.out}
		case o.kind == "local" || tarless:
			targets[id] = session.OutputTarget{Dir: o.dest}
		default:
			targets[id] = session.OutputTarget{File: o.dest}
		}
		b.req.Outputs = append(b.req.Outputs, engine.Output{Type: o.kind, Attrs: o.attrs, Dest: id})
	}
	if stdout > 1 {
		return nil, diag.Errorf(diag.Invalid, "--output: only one output can go to standard output")
	}
	if b.push && len(b.req.Tags) == 0 {
		return nil, diag.Errorf(diag.Invalid, "--push needs a name").WithHint("give one with --tag REGISTRY/NAME:TAG")
	}
	return targets, nil
}

// toStdout says whether an output takes standard output.
func (b *buildFlags) toStdout() bool {
	return slices.ContainsFunc(b.outputs, func(o output) bool { return o.dest == "-" })
}

// report writes the files that were asked for, and the image's ID to standard output for --quiet.
func (b *buildFlags) report(c *cli, mode progress.Mode, resp *engine.Response) error {
	if b.iidFile != "" {
		if err := writeFile("--iidfile", b.iidFile, []byte(resp.ID)); err != nil {
			return err
		}
	}
	if b.metaFile != "" {
		data, err := json.MarshalIndent(resp.Metadata, "", "  ")
		if err != nil {
			return diag.Errorf(diag.Internal, "--metadata-file: %w", err)
		}
		if err := writeFile("--metadata-file", b.metaFile, append(data, '\n')); err != nil {
			return err
		}
	}
	if b.call.json {
		data, err := json.MarshalIndent(resp.Metadata[b.call.name], "", "  ")
		if err != nil {
			return diag.Errorf(diag.Internal, "--call: %w", err)
		}
		fmt.Fprintf(c.out, "%s\n", data)
		resp.Text = ""
	}
	switch {
	case resp.Findings > 0 && !b.call.ignoreStatus:
		fmt.Fprint(c.err, resp.Text)
		return exitCode(1)
	case resp.Text != "":
		fmt.Fprint(c.out, resp.Text)
	case mode == progress.Quiet && !b.toStdout() && resp.ID != "":
		fmt.Fprintln(c.out, resp.ID)
	}
	return nil
}

func writeFile(flag, path string, data []byte) error {
	if err := outfile.WriteData(path, data); err != nil {
		return diag.Errorf(diag.KindOf(err), "%s: %w", flag, err)
	}
	return nil
}

// readPolicies reads the files of --source-policy, or else the one that the environment names, as it does for BuildKit's clients.
func readPolicies(files []string) ([]string, error) {
	if env := os.Getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"); len(files) == 0 && env != "" {
		files = []string{env}
	}
	var out []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "source-policy: %w", err)
		}
		out = append(out, string(raw))
	}
	return out, nil
}
