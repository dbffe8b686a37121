package local

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/session"
)

// remote is the client's session as the engine sees it.
type remote struct{ k *call }

var _ session.Session = remote{}

func (r remote) Dir(ctx context.Context, name string) (d session.Dir, err error) {
	_, err = r.k.ask(ctx, "dir", name, &d)
	return d, err
}

func (r remote) Secret(ctx context.Context, id string) (b []byte, err error) {
	_, err = r.k.ask(ctx, "secret", id, &b)
	return b, err
}

func (r remote) Credential(ctx context.Context, host string) (c session.Credential, err error) {
	_, err = r.k.ask(ctx, "credential", host, &c)
	return c, err
}

func (r remote) SSH(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	files, err := r.k.ask(ctx, "ssh", id, nil)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		return nil, diag.Errorf(diag.Internal, "the client sent no connection to its ssh agent")
	}
	defer files[0].Close()
	return net.FileConn(files[0])
}

// output is where an export goes, on the wire.
type output struct {
	Dir string
	ID  string // of the stream, to hear how it ended
}

func (r remote) Output(ctx context.Context, id string) (session.Output, error) {
	var o output
	files, err := r.k.ask(ctx, "output", id, &o)
	if err != nil {
		return session.Output{}, err
	}
	out := session.Output{Dir: o.Dir}
	if len(files) == 1 {
		out.File = &outputStream{File: files[0], r: r, id: o.ID}
	}
	return out, nil
}

// outputStream is the client's file, or the engine's end of a pipe to it. Closing it waits until the client has all of it.
type outputStream struct {
	*os.File
	r  remote
	id string
}

func (s *outputStream) Close() error {
	if err := s.File.Close(); err != nil {
		return err
	}
	_, err := s.r.k.ask(context.Background(), "closed", s.id, nil)
	return err
}

// Abort ends a stream whose content is not complete: a file is removed again.
func (s *outputStream) Abort() error {
	err := s.File.Close()
	_, aerr := s.r.k.ask(context.Background(), "aborted", s.id, nil)
	return errors.Join(err, aerr)
}

// answer serves the callbacks of one call on the client's side.
type answer struct {
	s      session.Session
	mu     sync.Mutex               // callbacks are answered at the same time
	copies map[string]chan error    // of each stream that is written here, how it ended
	files  map[string]*outfile.File // each file that was passed on and is not complete yet
}

// abandon ends what the engine did not complete.
func (a *answer) abandon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.files {
		_ = f.Abort() // the call has failed already
	}
	clear(a.files)
}

// take returns the file that was passed on as a stream, for the one who ends it, or how the copying of the stream ends.
func (a *answer) take(stream string) (*outfile.File, chan error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[stream]
	delete(a.files, stream)
	return f, a.copies[stream]
}

// do answers one callback: a value, and files to send along, which the caller closes.
func (a *answer) do(ctx context.Context, q ask) (any, []*os.File, error) {
	if a.s == nil {
		return nil, nil, diag.Errorf(diag.NotFound, "there is no session")
	}
	switch q.Method {
	case "dir":
		v, err := a.s.Dir(ctx, q.Arg)
		if err == nil {
			v.Path, err = filepath.Abs(v.Path) // the engine's process stands elsewhere
		}
		return v, nil, err
	case "secret":
		v, err := a.s.Secret(ctx, q.Arg)
		return v, nil, err
	case "credential":
		v, err := a.s.Credential(ctx, q.Arg)
		return v, nil, err
	case "ssh":
		f, err := a.ssh(ctx, q.Arg)
		return nil, f, err
	case "output":
		return a.output(ctx, q)
	case "aborted":
		if f, _ := a.take(q.Arg); f != nil {
			return nil, nil, f.Abort()
		}
		return nil, nil, nil // what is in a pipe cannot be taken back
	case "closed":
		f, done := a.take(q.Arg)
		if f != nil {
			return nil, nil, f.Close()
		}
		if done == nil {
			return nil, nil, diag.Errorf(diag.Internal, "there is no stream %s", q.Arg)
		}
		return nil, nil, <-done
	}
	return nil, nil, diag.Errorf(diag.Internal, "unknown callback %q", q.Method)
}

// ssh passes one end of a socket pair on, and pipes the other to the agent.
func (a *answer) ssh(ctx context.Context, id string) ([]*os.File, error) {
	agent, err := a.s.SSH(ctx, id)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, agent.Close())
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "ssh"), os.NewFile(uintptr(fds[1]), "ssh")
	end, err := net.FileConn(mine)
	if err = errors.Join(err, mine.Close()); err != nil {
		return nil, errors.Join(err, agent.Close(), theirs.Close())
	}
	go func() {
		_, _ = io.Copy(agent, end)
		_ = agent.Close()
	}()
	go func() {
		_, _ = io.Copy(end, agent)
		_ = end.Close()
	}()
	return []*os.File{theirs}, nil
}

func isRegular(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular()
}

// output opens a destination. A regular file is passed on; another stream is written here, from a pipe.
func (a *answer) output(ctx context.Context, q ask) (any, []*os.File, error) {
	o, err := a.s.Output(ctx, q.Arg)
	if err != nil {
		return nil, nil, err
	}
	if o.File == nil {
		dir, err := filepath.Abs(o.Dir)
		return output{Dir: dir}, nil, err
	}
	id := strconv.FormatInt(q.ID, 10)
	if f, ok := o.File.(*outfile.File); ok && isRegular(f.File) {
		// Writing to the file directly saves carrying every byte through a pipe.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, nil, errors.Join(err, f.Abort())
		}
		a.mu.Lock()
		a.files[id] = f
		a.mu.Unlock()
		return output{ID: id}, []*os.File{os.NewFile(uintptr(fd), f.Name())}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, o.File.Close())
	}
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer switches; a smaller pipe works too
	done := make(chan error, 1)
	a.mu.Lock()
	a.copies[id] = done
	a.mu.Unlock()
	go func() {
		_, err := io.Copy(o.File, r)
		done <- errors.Join(err, o.File.Close(), r.Close())
	}()
	return output{ID: id}, []*os.File{w}, nil
}
