package buildkit

import (
	"context"
	"os"
	"path"
	"syscall"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
)

// Solve makes references of a definition or with a frontend.
func (g bridgeServer) Solve(ctx context.Context, req *gateway.SolveRequest) (*gateway.SolveResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	res, err := b.solve(ctx, req)
	if err != nil {
		return nil, b.located(err)
	}
	out, err := b.encode(res)
	if err != nil {
		return nil, err
	}
	if !req.AllowResultReturn { // clients of the first days
		if res.single == nil {
			return &gateway.SolveResponse{}, nil
		}
		return &gateway.SolveResponse{Ref: res.single.id}, nil
	}
	return &gateway.SolveResponse{Result: out}, nil
}

// bridgeServer is the LLBBridge service: each call finds the build that it belongs to.
type bridgeServer struct {
	gateway.UnimplementedLLBBridgeServer
	s     *Server
	fixed *bridge // of a frontend that has a connection of its own; nil = calls say which build they are of
}

func (g bridgeServer) bridgeOf(ctx context.Context) (*bridge, error) {
	if g.fixed != nil {
		return g.fixed, nil
	}
	return g.s.bridgeOf(ctx)
}

// Ping tells what the server can do.
func (g bridgeServer) Ping(ctx context.Context, _ *gateway.PingRequest) (*gateway.PongResponse, error) {
	if _, err := g.bridgeOf(ctx); err != nil {
		return nil, err
	}
	return &gateway.PongResponse{FrontendAPICaps: frontendAPICaps(), LLBCaps: llbCaps(), Workers: g.s.workers()}, nil
}

// Return ends the build with a result or an error.
func (g bridgeServer) Return(ctx context.Context, req *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.ReturnResponse{}, b.finish(req.Result, req.Error)
}

// Inputs tells the trees that the client has passed.
func (g bridgeServer) Inputs(ctx context.Context, _ *gateway.InputsRequest) (*gateway.InputsResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.InputsResponse{Definitions: b.inputs}, nil
}

// Evaluate makes a reference now.
func (g bridgeServer) Evaluate(ctx context.Context, req *gateway.EvaluateRequest) (*gateway.EvaluateResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.EvaluateResponse{}, b.located(b.evaluate(ctx, req.Ref))
}

// Warn shows a warning of the frontend.
func (g bridgeServer) Warn(ctx context.Context, req *gateway.WarnRequest) (*gateway.WarnResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	v, ok := b.vertices[graph.Digest(req.Digest)]
	b.mu.Unlock()
	if !ok {
		v = graph.Digest(req.Digest)
	}
	b.journal.say(&control.StatusResponse{Warnings: []*control.VertexWarning{{
		Vertex: v.String(), Level: req.Level, Short: req.Short, Detail: req.Detail, Url: req.Url, Info: req.Info, Ranges: req.Ranges,
	}}})
	return &gateway.WarnResponse{}, nil
}

// maxRead bounds what one ReadFile returns, in bytes: a message must hold it.
const maxRead = maxMessage - 4096

// ReadFile reads a file of a reference, or a part of it.
func (g bridgeServer) ReadFile(ctx context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	b, files, err := g.files(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	offset, length := req.GetRange().GetOffset(), req.GetRange().GetLength()
	if offset < 0 || length < 0 {
		return nil, diag.Errorf(diag.Invalid, "the range %d+%d is negative", offset, length)
	}
	done, err := b.s.quota.read(ctx, b.who())
	if err != nil {
		return nil, err
	}
	defer done()
	data, err := readRange(files, req.FilePath, offset, length)
	return &gateway.ReadFileResponse{Data: data}, b.missing("open", req.FilePath, err)
}

func readRange(files *engine.Files, p string, offset, length int64) ([]byte, error) {
	f, err := files.OpenFile(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := max(st.Size()-offset, 0)
	if length > 0 {
		n = min(n, length)
	}
	if n > maxRead {
		return nil, tooLarge(p)
	}
	data := make([]byte, n)
	k, err := f.ReadAt(data, offset)
	if int64(k) < n && err != nil {
		return nil, err
	}
	return data, nil
}

func tooLarge(p string) error {
	return diag.Errorf(diag.Exhausted, "%q is larger than %d bytes: read it in parts", p, maxRead)
}

// ReadDir lists a directory of a reference.
func (g bridgeServer) ReadDir(ctx context.Context, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	b, files, err := g.files(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	done, err := b.s.quota.read(ctx, b.who())
	if err != nil {
		return nil, err
	}
	defer done()
	kids, err := files.ReadDir(ctx, req.DirPath)
	if err != nil {
		return nil, b.missing("open", req.DirPath, err)
	}
	out := &gateway.ReadDirResponse{}
	for _, k := range kids {
		ok, err := included(req.IncludePattern, k.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		out.Entries = append(out.Entries, stat(&k, k.Name))
	}
	return out, nil
}

// StatFile describes a file of a reference; a symlink is not followed.
func (g bridgeServer) StatFile(ctx context.Context, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	b, files, err := g.files(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	e, err := files.Stat(req.Path)
	if err != nil {
		return nil, b.missing("lstat", req.Path, err)
	}
	return &gateway.StatFileResponse{Stat: stat(&e, path.Base(path.Clean("/"+req.Path)))}, nil
}

func (g bridgeServer) files(ctx context.Context, id string) (*bridge, *engine.Files, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.get(id)
	if err != nil {
		return nil, nil, err
	}
	files, err := b.job.Files(ctx, r.target.Root)
	return b, files, b.located(err)
}

// missing says that a file does not exist in the words of the system, which frontends look for.
func (b *bridge) missing(op, p string, err error) error {
	if diag.KindOf(err) != diag.NotFound {
		return err
	}
	return diag.Errorf(diag.NotFound, "%s %s: %w", op, path.Join("/", p), syscall.ENOENT)
}

// stat is a file as the transfer protocol describes it: the mode is Go's.
func stat(e *engine.FileEntry, name string) *types.Stat {
	st := &types.Stat{Path: name, Mode: uint32(goMode(e.Mode)), Uid: e.UID, Gid: e.GID, ModTime: e.MTime, Linkname: e.Link}
	switch {
	case e.IsRegular():
		st.Size = e.Size
	case e.Link != "":
		st.Size = int64(len(e.Link))
	}
	if e.Mode&unix.S_IFMT == unix.S_IFBLK || e.Mode&unix.S_IFMT == unix.S_IFCHR {
		st.Devmajor, st.Devminor = int64(unix.Major(e.Rdev)), int64(unix.Minor(e.Rdev))
	}
	return st
}

func goMode(m uint32) os.FileMode {
	mode := os.FileMode(m & 0o777)
	types := map[uint32]os.FileMode{
		unix.S_IFDIR: os.ModeDir, unix.S_IFLNK: os.ModeSymlink, unix.S_IFIFO: os.ModeNamedPipe, unix.S_IFSOCK: os.ModeSocket,
		unix.S_IFBLK: os.ModeDevice, unix.S_IFCHR: os.ModeDevice | os.ModeCharDevice,
	}
	mode |= types[m&unix.S_IFMT]
	for bit, x := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if m&bit != 0 {
			mode |= x
		}
	}
	return mode
}
