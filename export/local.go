package export

import (
	"context"
	"path"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/tree"
)

// Local writes the files of the result into the client's directory, owned by whom the directory belongs to.
type Local struct {
	files
	remove bool // what the result does not have is removed from the directory
}

// NewLocal reads the attributes of type=local.
func NewLocal(o Output) (*Local, error) {
	a := newAttrs(o)
	x := &Local{files: a.files(o), remove: a.oneOf("mode", "copy", "delete") == "delete"}
	return x, a.done()
}

// Name implements Exporter.
func (x *Local) Name() string { return "exporting to client directory" }

// Export implements Exporter.
func (x *Local) Export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	out, err := e.output(ctx, x.dest)
	if err != nil {
		return nil, err
	}
	if out.Dir == "" {
		discard(out.File)
		return nil, diag.Errorf(diag.Invalid, "a directory is needed to write to, not a file").WithHint("use dest=DIRECTORY")
	}
	dst, err := openDest(out.Dir)
	if err != nil {
		return nil, diag.Errorf(diag.Denied, "cannot write to %s: %w", out.Dir, err)
	}
	defer unix.Close(dst.fd)
	if x.remove {
		dst.kept = map[string]bool{}
	}
	parts, closeAll, err := x.parts(ctx, set)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if err := x.write(ctx, e, dst, p); err != nil {
			return nil, err
		}
	}
	if err := dst.clean(); err != nil {
		return nil, err
	}
	if out.Send != nil {
		done := e.step("copying files")
		if err := out.Send(ctx); err != nil {
			return nil, err
		}
		done()
	}
	return &Receipt{Metadata: map[string]string{}}, nil
}

func (x *Local) write(ctx context.Context, e *Env, dst *dest, p part) error {
	c := &copying{env: e, src: p.fd, dst: dst, epoch: p.epoch, links: map[tree.FileID]string{}}
	c.g, c.ctx = errgroup.WithContext(ctx)
	c.g.SetLimit(2 * runtime.GOMAXPROCS(0))
	if p.prefix != "." {
		if err := dst.mkdir(p.prefix); err != nil {
			return err
		}
	}
	c.g.Go(func() error { return c.dir(&p.top.Pick, p.top.Rel, p.prefix) })
	err := c.wait()
	c.report(true)
	for _, s := range p.extra {
		if err == nil {
			err = dst.write(path.Join(p.prefix, s.name), s.raw, p.epoch)
		}
	}
	return err
}
