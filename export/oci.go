package export

import (
	"context"
	"io"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// OCI writes an OCI image layout: a tar for the client's stream, or a directory.
// Source: image-spec v1.1 image-layout.md.
type OCI struct {
	imageOptions
	tar  bool
	dest string
}

// NewOCI reads the attributes of type=oci.
func NewOCI(o Output) (*OCI, error) {
	a := newAttrs(o)
	x := &OCI{imageOptions: a.image(), tar: a.flag("tar", true), dest: o.Dest}
	return x, a.done()
}

// Name implements Exporter.
func (x *OCI) Name() string { return "exporting to oci image format" }

// Export implements Exporter.
func (x *OCI) Export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	return archived{x.imageOptions, x.tar, x.dest, archive.OCIFiles}.export(ctx, e, set)
}

// archived is an export of an image as files of some format.
type archived struct {
	imageOptions
	tar   bool
	dest  string
	files func([]archive.Set) ([]archive.Output, error)
}

func (x archived) export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	if err := x.nameFrom(set); err != nil {
		return nil, err
	}
	p, err := e.pack(ctx, set, e.packing(x.imageOptions, set))
	if err != nil {
		return nil, err
	}
	files, err := x.files([]archive.Set{e.set(p, x.Names)})
	if err != nil {
		return nil, err
	}
	r, err := receipt(x.Names, p)
	if err != nil {
		return nil, err
	}
	return r, e.deliver(ctx, delivery{x.dest, x.tar, r.Metadata}, files)
}

// nameFrom replaces name=* by the name that the build has.
func (o *imageOptions) nameFrom(set *Set) (err error) {
	if o.NameFromBuild && set.Name != "" {
		o.Names, err = normalNames([]string{set.Name})
	}
	return err
}

// delivery says where files go, and in which form.
type delivery struct {
	dest  string
	asTar bool
	about map[string]string // what the client is told of them before
}

// deliver writes files to the client, as one tar or as a directory.
func (e *Env) deliver(ctx context.Context, to delivery, files []archive.Output) error {
	out, err := e.outputOf(ctx, to.dest, to.about)
	if err != nil {
		return err
	}
	if !to.asTar {
		if out.Dir == "" {
			discard(out.File)
			return diag.Errorf(diag.Invalid, "a directory is needed to write to, not a file").WithHint("use dest=DIRECTORY, or tar=true")
		}
		defer e.step("copying files")()
		if err := archive.WriteDir(ctx, out.Dir, files); err != nil || out.Send == nil {
			return err
		}
		return out.Send(ctx)
	}
	return e.stream(out, func(w io.Writer) error { return archive.WriteTar(ctx, w, files) })
}

func (e *Env) output(ctx context.Context, dest string) (session.Output, error) {
	return e.outputOf(ctx, dest, nil)
}

func (e *Env) outputOf(ctx context.Context, dest string, about map[string]string) (session.Output, error) {
	if e.Session == nil {
		return session.Output{}, diag.Errorf(diag.Invalid, "there is no client to write to")
	}
	if s, ok := e.Session.(session.Describing); ok && about != nil {
		return s.OutputOf(ctx, dest, about)
	}
	return e.Session.Output(ctx, dest)
}

// stream gives the client's stream to f and closes it.
func (e *Env) stream(out session.Output, f func(io.Writer) error) error {
	if out.File == nil {
		return diag.Errorf(diag.Invalid, "a file is needed to write to, not a directory").WithHint("use dest=FILE, or dest=- for the standard output")
	}
	defer e.step("sending tarball")()
	if err := f(out.File); err != nil {
		discard(out.File)
		return err
	}
	return out.File.Close()
}

// discard ends a stream whose content is not complete. Half an archive is worse than none.
func discard(w io.Closer) {
	if w == nil {
		return
	}
	if a, ok := w.(interface{ Abort() error }); ok {
		_ = a.Abort() // what failed before is what matters, here and below
		return
	}
	_ = w.Close()
}
