package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/strictjson"
)

// Labels of a frontend's image.
const (
	labelCaps      = "moby.buildkit.frontend.caps" // what it can do: "NAME[+EXPERIMENT],..."
	labelNoNetwork = "moby.buildkit.frontend.network.none"
)

// maxNested bounds how deep frontends can call each other.
const maxNested = 10

// frontendImage is a frontend that is a program in an image.
type frontendImage struct {
	name string // as the user knows it
	edge graph.Edge
	conf image.RunConfig
}

// inImage runs the frontend that the attribute "source" names, in a container whose input and output are a connection for
// calls of LLBBridge. Source of the environment: frontend/gateway of BuildKit.
func (b *bridge) inImage(ctx context.Context, attrs map[string]string, inputs map[string]*pb.Definition) (*result, error) {
	if _, ok := attrs["gateway-devel"]; ok {
		return nil, unsupported("development gateway is no longer supported")
	}
	source := attrs["source"]
	switch {
	case source == "":
		return nil, diag.Errorf(diag.Invalid, "no source specified for gateway")
	case namesBuiltin(attrs):
		return b.run("dockerfile.v0")(ctx, attrs, inputs)
	case !b.s.opt.Frontends.allows(source):
		return nil, diag.Errorf(diag.Denied, "'%s' is not an allowed gateway source", source)
	case b.depth >= maxNested:
		return nil, diag.Errorf(diag.Exhausted, "more than %d frontends call each other", maxNested)
	}
	from, err := frontendCaches(attrs)
	if err != nil {
		return nil, err
	}
	if err := b.importCaches(from...); err != nil {
		return nil, err
	}
	if b.session != nil {
		b.session.Bind(localSessions(attrs))
	}
	f, err := b.findFrontend(ctx, source, attrs, inputs)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "the frontend %s: %w", source, err)
	}
	if err := f.checkCaps(attrs["frontend.caps"], len(inputs) > 0); err != nil {
		return nil, err
	}
	child := newBridge(within(b.ctx, b.scope(ctx)), b.s, b.job, b.journal, b.session)
	child.inputs, child.policy, child.root, child.depth, child.asked = inputs, b.policy, b.root, b.depth+1, b.asked
	defer child.end()
	defer context.AfterFunc(ctx, child.cancel)()
	res, err := child.inContainer(f, attrs)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return res, b.adopt(res)
}

// adopt makes the references of another bridge's result this one's too.
func (b *bridge) adopt(res *result) error {
	all := res.all()
	for _, list := range res.proofs {
		for _, p := range list {
			all = append(all, p.ref)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return errEnded
	}
	for _, r := range all {
		if r == nil || r.id == "" {
			continue
		}
		if len(b.refs) >= maxRefs {
			return diag.Errorf(diag.Exhausted, "the build holds more than %d references", maxRefs)
		}
		b.refs[r.id] = r
	}
	return nil
}

// findFrontend finds the image: in a registry, or where a named context has it.
func (b *bridge) findFrontend(ctx context.Context, source string, attrs map[string]string, inputs map[string]*pb.Definition) (*frontendImage, error) {
	given, err := b.decodeInputs(ctx, attrs, inputs)
	if err != nil {
		return nil, err
	}
	req := dockerfile.Request{Contexts: cut(attrs, "context:"), IgnoreSyntax: true, BuildPlatform: engine.Native()}
	named, err := b.job.Context(ctx, req, given, source)
	if err != nil {
		return nil, err
	}
	if named != nil {
		f := &frontendImage{name: source, edge: named.Edge}
		if named.Config != nil {
			f.conf = named.Config.Config
		}
		return f, nil
	}
	meta, err := b.sourceMeta(ctx, &gateway.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: "docker-image://" + source}}, b.policy)
	if err != nil {
		return nil, err
	}
	if meta.Image == nil {
		return nil, unsupported("%s is no image", source)
	}
	var conf image.Config
	if err := strictjson.Unmarshal(meta.Image.Config, &conf); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the configuration of the image %s: %w", source, err)
	}
	src := meta.Source
	if d := meta.Image.Digest; d != "" && !strings.Contains(src.Identifier, "@") {
		src = &pb.SourceOp{Identifier: src.Identifier + "@" + d, Attrs: src.Attrs}
	}
	e, err := b.sourceEdge(src)
	return &frontendImage{name: source, edge: e, conf: conf.Config}, err
}

// sourceEdge is a source as a tree.
func (b *bridge) sourceEdge(src *pb.SourceOp) (graph.Edge, error) {
	p := engine.Native()
	op, err := (&pb.Op{Op: &pb.Op_Source{Source: src}, Platform: &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}).MarshalVT()
	if err != nil {
		return graph.Edge{}, err
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(op).String()}}}).MarshalVT()
	if err != nil {
		return graph.Edge{}, err
	}
	return b.plainEdge(&pb.Definition{Def: [][]byte{op, last}})
}

func capNames(list string) []string {
	var names []string
	for _, c := range strings.Split(list, ",") {
		if name, _, _ := strings.Cut(c, "+"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// checkCaps refuses a request that asks for what the frontend does not say that it can.
func (f *frontendImage) checkCaps(want string, inputs bool) error {
	has, need := capNames(f.conf.Labels[labelCaps]), capNames(want)
	if inputs {
		need = append(need, "moby.buildkit.frontend.inputs")
	}
	for _, c := range need {
		if !slices.Contains(has, c) {
			err := diag.Errorf(diag.Unsupported, "unsupported frontend capability %s", c)
			return detailed{err, "FrontendCap", &errdefs.FrontendCap{Name: c}}
		}
	}
	return nil
}

// env is the environment of the frontend's program.
func (b *bridge) frontendEnv(f *frontendImage, attrs map[string]string) ([]string, error) {
	env := slices.Clone(f.conf.Env)
	for i, k := range slices.Sorted(maps.Keys(attrs)) {
		env = append(env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", i, k, attrs[k]))
	}
	type worker struct {
		ID        string             `json:"id"`
		Labels    map[string]string  `json:"labels"`
		Platforms []ocispec.Platform `json:"platforms"`
	}
	var workers []worker
	for _, w := range b.s.workers() {
		x := worker{ID: w.ID, Labels: w.Labels}
		for _, p := range w.Platforms {
			x.Platforms = append(x.Platforms, ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
		}
		workers = append(workers, x)
	}
	raw, err := json.Marshal(workers)
	if err != nil {
		return nil, err
	}
	id := ""
	if b.session != nil {
		id = b.session.ID()
	}
	return append(env, "BUILDKIT_SESSION_ID="+id, "BUILDKIT_WORKERS="+string(raw), "BUILDKIT_EXPORTEDPRODUCT=buildkit"), nil
}

// inContainer runs a frontend to its end and returns what it has returned.
func (b *bridge) inContainer(f *frontendImage, attrs map[string]string) (*result, error) {
	env, err := b.frontendEnv(f, attrs)
	if err != nil {
		return nil, err
	}
	p := engine.Process{}
	p.Args, p.Env, p.Cwd = []string{"/run"}, env, first(f.conf.WorkingDir, "/")
	if len(f.conf.Entrypoint) > 0 {
		p.Args = f.conf.Entrypoint
	}
	o := &graph.Exec{Args: p.Args, Mounts: []graph.Mount{{Type: graph.MountBind, Target: "/", Input: 0, Output: graph.None}}}
	if off, err := strconv.ParseBool(f.conf.Labels[labelNoNetwork]); err == nil && off {
		o.Network = graph.NetworkNone
	}
	in := []engine.Tree{{Edge: f.edge}}
	if f.edge.IsScratch() {
		in, o.Mounts[0].Input = nil, graph.None
	}
	def, err := llb.Encode(f.edge)
	if err != nil {
		return nil, err
	}
	meta, err := def.MarshalVT()
	if err != nil {
		return nil, err
	}
	if err := b.s.quota.take(b.who(), share{containers: 1}); err != nil {
		return nil, err
	}
	defer func() { _ = b.s.quota.take(b.who(), share{containers: -1}) }()
	c, err := b.job.Container(b.ctx, o, in, engine.MemoryFile("/run/config/buildkit/metadata/frontend.bin", meta))
	if err != nil {
		return nil, err
	}
	log := &lastWords{}
	p.Stderr = log
	exit, err := b.converse(c, p)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return b.outcome(f, exit, err, log)
}

// converse runs the frontend's program and answers its calls.
func (b *bridge) converse(c *engine.Container, p engine.Process) (*engine.Exit, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "frontend"), os.NewFile(uintptr(fds[1]), "frontend")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	who := b.who()
	k := &link{end: func() { _ = conn.Close() }}
	b.s.quota.memory.open(k, who)
	defer k.close()
	l := newOneConn(newWire(conn, k, asServer))
	g := grpc.NewServer(b.s.calls(b.belong, func(context.Context) string { return who }, k)...)
	gateway.RegisterLLBBridgeServer(g, bridgeServer{s: b.s, fixed: b})
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) }) // it ends with Stop
	p.Stdin, p.Stdout = theirs, theirs
	exit, err := c.Run(b.ctx, p)
	b.cancel()     // of calls that are under way: nobody waits for them any more
	theirs.Close() // the server waits for a program to begin that has ended without a word
	g.Stop()
	wg.Wait()
	return exit, err
}

// outcome is what the frontend has returned. An error that it returned comes before how it ended, and that before a result.
func (b *bridge) outcome(f *frontendImage, exit *engine.Exit, err error, log *lastWords) (*result, error) {
	var out returned
	select {
	case out = <-b.returned:
	default:
	}
	if out.err != nil {
		return nil, out.err
	}
	if err == nil && exit.Code != 0 {
		err = diag.Errorf(diag.Failed, "exit code: %d", exit.Code)
	}
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "the frontend %s failed: %w%s", f.name, err, log.tail())
	}
	if out.res == nil {
		return nil, diag.Errorf(diag.Failed, "the frontend %s ended without a result%s", f.name, log.tail())
	}
	return out.res, nil
}

// lastWords keeps the end of what a program prints.
type lastWords struct {
	mu   sync.Mutex
	data []byte
}

// maxWords bounds them, in bytes.
const maxWords = 4 << 10

// Write implements io.Writer.
func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data = append(w.data, p[max(0, len(p)-maxWords):]...)
	w.data = w.data[max(0, len(w.data)-maxWords):]
	return len(p), nil
}

// tail is what to put behind a message.
func (w *lastWords) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.TrimSpace(strings.ToValidUTF8(string(w.data), "\uFFFD"))
	if text == "" {
		return ""
	}
	return "\n" + text
}
