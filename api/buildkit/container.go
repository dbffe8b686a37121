package buildkit

import (
	"context"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/llb"
)

// box is a container of a frontend, in which it runs processes.
type box struct {
	*engine.Container
	os   string // of the platform that was asked for
	runs atomic.Int32
	once sync.Once
	err  error
}

// close ends what runs and removes the container. That something ran is an error, as clients expect.
func (x *box) close() error {
	x.once.Do(func() {
		running := x.runs.Load()
		x.err = x.Close()
		if running > 0 && x.err == nil {
			x.err = diag.Errorf(diag.Canceled, "%d processes were still running in the container: %w", running, context.Canceled)
		}
	})
	return x.err
}

// maxBoxes bounds the containers that one build has at a time.
const maxBoxes = 100

// NewContainer makes a container. Nothing runs in it yet.
func (g bridgeServer) NewContainer(ctx context.Context, req *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.NewContainerResponse{}, b.located(b.newContainer(req))
}

func (b *bridge) newContainer(req *gateway.NewContainerRequest) error {
	if req.ContainerID == "" || len(req.ContainerID) > maxRef {
		return diag.Errorf(diag.Invalid, "a container needs an id of at most %d characters", maxRef)
	}
	if err := b.begin(req.ContainerID); err != nil {
		return err
	}
	defer b.making.Done()
	c, err := b.container(req)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.forgetBox(req.ContainerID)
		return err
	}
	b.boxes[req.ContainerID] = &box{Container: c, os: req.GetPlatform().GetOS()}
	return nil
}

// begin takes a container's id. Its place is empty until it is made.
func (b *bridge) begin(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return errEnded
	}
	if _, ok := b.boxes[id]; ok {
		return status.Errorf(codes.AlreadyExists, "Container %s already exists", id)
	}
	if len(b.boxes) >= maxBoxes {
		return diag.Errorf(diag.Exhausted, "the build has more than %d containers", maxBoxes)
	}
	if err := b.s.quota.take(b.who(), share{containers: 1}); err != nil {
		return err
	}
	b.boxes[id] = nil
	b.making.Add(1)
	return nil
}

func (b *bridge) container(req *gateway.NewContainerRequest) (*engine.Container, error) {
	// A container is a command without arguments and without outputs.
	exec := &pb.ExecOp{Meta: &pb.Meta{Args: []string{""}, Cwd: "/", Hostname: req.Hostname, ExtraHosts: req.ExtraHosts}, Network: req.Network}
	var in []engine.Tree
	for i, m := range req.Mounts {
		if m == nil {
			return nil, status.Errorf(codes.InvalidArgument, "mount %d is nil", i)
		}
		m = m.CloneVT()
		m.Input, m.Output = int64(pb.Empty), int64(pb.SkipOutput)
		if m.ResultID != "" {
			t, err := b.treeOf(m.ResultID)
			if err != nil {
				return nil, diag.Errorf(diag.KindOf(err), "failed to find ref for %q mount: %w", m.Dest, err)
			}
			if t.Left != nil || !t.Edge.IsScratch() {
				m.Input = int64(len(in))
				in = append(in, t)
			}
		}
		exec.Mounts = append(exec.Mounts, m)
	}
	o, err := llb.DecodeExec(exec, len(in))
	if err != nil {
		return nil, err
	}
	return b.job.Container(b.ctx, o, in)
}

// treeOf finds what a mount of a container shows.
func (b *bridge) treeOf(id string) (engine.Tree, error) {
	b.mu.Lock()
	t, ok := b.left[id]
	b.mu.Unlock()
	if ok {
		return t, nil
	}
	r, err := b.get(id)
	if err != nil {
		return t, err
	}
	return engine.Tree{Edge: r.target.Root}, nil
}

// boxOf finds a container.
func (b *bridge) boxOf(id string) (*box, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.boxes[id]; x != nil {
		return x, nil
	}
	return nil, diag.Errorf(diag.NotFound, "container %.80q previously released or not created", id)
}

// ReleaseContainer ends what runs in a container and removes it.
func (g bridgeServer) ReleaseContainer(ctx context.Context, req *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.ReleaseContainerResponse{}, b.release(req.ContainerID)
}

func (b *bridge) release(id string) error {
	x, err := b.boxOf(id)
	if err != nil {
		return err
	}
	err = x.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.boxes[id] == x {
		b.forgetBox(id)
	}
	return err
}

// forgetBox gives back a container's id and its place among those of the client. The caller holds mu.
func (b *bridge) forgetBox(id string) {
	delete(b.boxes, id)
	_ = b.s.quota.take(b.who(), share{containers: -1})
}

// ReadFileContainer reads a regular file of a container's mount, or a part of it.
func (g bridgeServer) ReadFileContainer(ctx context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	b, x, err := g.boxOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	done, err := b.s.quota.read(ctx, b.who())
	if err != nil {
		return nil, err
	}
	defer done()
	offset, length := req.GetRange().GetOffset(), req.GetRange().GetLength()
	if offset < 0 || length < 0 {
		return nil, diag.Errorf(diag.Invalid, "invalid range for %s: %d+%d", req.FilePath, offset, length)
	}
	f, err := x.OpenFile(int(req.MountIndex), req.FilePath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if req.Range == nil || length > maxRead {
		length = maxRead + 1
	}
	// The container may write to it at this moment: its size is no promise.
	data, err := io.ReadAll(io.NewSectionReader(f, offset, length))
	if len(data) > maxRead {
		return nil, tooLarge(req.FilePath)
	}
	return &gateway.ReadFileResponse{Data: data}, err
}

// ReadDirContainer lists a directory of a container's mount.
func (g bridgeServer) ReadDirContainer(ctx context.Context, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	b, x, err := g.boxOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	done, err := b.s.quota.read(ctx, b.who())
	if err != nil {
		return nil, err
	}
	defer done()
	kids, err := x.ReadDir(int(req.MountIndex), req.DirPath)
	if err != nil {
		return nil, err
	}
	out := &gateway.ReadDirResponse{}
	for _, k := range kids {
		ok, err := included(req.IncludePattern, k.Name())
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		st, err := x.stat(int(req.MountIndex), path.Join(req.DirPath, k.Name()), false)
		if diag.KindOf(err) == diag.NotFound {
			continue // it was there a moment ago
		}
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, st)
	}
	return out, nil
}

// StatFileContainer describes a file of a container's mount; links are followed within the mount.
func (g bridgeServer) StatFileContainer(ctx context.Context, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	_, x, err := g.boxOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	st, err := x.stat(int(req.MountIndex), req.Path, true)
	return &gateway.StatFileResponse{Stat: st}, err
}

func (x *box) stat(mount int, name string, follow bool) (*types.Stat, error) {
	f, err := x.Open(mount, name, follow)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return statOf(f, path.Base(path.Clean("/"+name)))
}

func (g bridgeServer) boxOf(ctx context.Context, id string) (*bridge, *box, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	x, err := b.boxOf(id)
	return b, x, err
}

// included reports whether a name fits a pattern; all do if there is none.
func included(pattern, name string) (bool, error) {
	if pattern == "" {
		return true, nil
	}
	ok, err := path.Match(pattern, name)
	if err != nil {
		return false, diag.Errorf(diag.Invalid, "pattern %q: %w", pattern, err)
	}
	return ok, nil
}

// statOf describes an open file.
func statOf(f *os.File, name string) (*types.Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("stat", err)
	}
	e := engine.FileEntry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, MTime: st.Mtim.Nano(), Rdev: st.Rdev}
	if e.Mode&unix.S_IFMT == unix.S_IFLNK {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return nil, os.NewSyscallError("readlink", err)
		}
		e.Link = string(buf[:n])
	}
	return stat(&e, name), nil
}
