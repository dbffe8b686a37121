package export

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/tree"
)

// Local writes the files of the result into the client's directory, owned by whom the directory belongs to.
type Local struct {
	files
	remove bool // what the result does not have is removed from the directory
	all    bool // device nodes, setuid and setgid bits and attributes that give rights are written too
}

// NewLocal reads the attributes of type=local.
func NewLocal(o Output) (*Local, error) {
	a := newAttrs(o)
	x := &Local{files: a.files(o), remove: a.oneOf("mode", "copy", "delete") == "delete", all: a.flag("privileged", false)}
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
	dst, err := openDest(out.Dir, x.all)
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	if x.remove {
		dst.kept = map[string]bool{}
	}
	parts, closeAll, err := x.parts(ctx, set)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	if err := x.writeAll(ctx, e, dst, parts); err != nil {
		if errors.Is(err, fs.ErrPermission) && !dst.Owner.IsSelf() {
			return nil, diag.Errorf(diag.Denied, "%w", err).
				WithHint("files are written with the rights of the user who owns %s; what other users have there must be removed first", out.Dir)
		}
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

func (x *Local) writeAll(ctx context.Context, e *Env, dst *dest, parts []part) (err error) {
	copies := make([]*copying, len(parts))
	for i, p := range parts {
		if copies[i], err = x.write(ctx, e, dst, p); err != nil {
			return err
		}
	}
	if err := dst.clean(); err != nil {
		return err
	}
	for _, c := range copies {
		if err := c.finishDirs(); err != nil {
			return err
		}
	}
	return nil
}

func (x *Local) write(ctx context.Context, e *Env, dst *dest, p part) (*copying, error) {
	c := &copying{env: e, src: p.fd, dst: dst, epoch: p.epoch, links: map[tree.FileID]string{}}
	c.g, c.ctx = errgroup.WithContext(ctx)
	c.g.SetLimit(2 * runtime.GOMAXPROCS(0))
	if p.prefix != "." {
		if err := dst.mkdir(p.prefix); err != nil {
			return nil, err
		}
	}
	c.g.Go(func() error { return c.dir(&p.top.Pick, p.top.Rel, p.prefix) })
	err := c.wait()
	c.report(true)
	c.warn()
	for _, s := range p.extra {
		if err == nil {
			err = dst.write(path.Join(p.prefix, s.name), s.raw, p.epoch)
		}
	}
	return c, err
}
