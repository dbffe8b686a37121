package sandbox

import (
	"io"
	"os"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stdio is the input and output of a container.
type stdio struct {
	files  [3]*os.File // the container's ends
	ends   []*os.File  // those of files that are this process's to close when the container has them
	input  *os.File    // ours
	output []*os.File  // ours
	copies sync.WaitGroup
	mu     sync.Mutex
	err    error // of copying
}

// outputDelay bounds the wait for output after the end: a descriptor that got out of the container does not hold the build up.
const outputDelay = 30 * time.Second

// connect makes pipes for what is no file already, also for what nobody writes or reads: programs look at what kind of file they have. The container's user may open them by name, such as /dev/stdout.
func connect(spec *Spec, uid uint32) (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.started()
			s.finish()
		}
	}()
	if err := s.stdin(spec.Stdin, uid); err != nil {
		return nil, err
	}
	if s.files[1], err = s.out(spec.Stdout, uid); err != nil {
		return nil, err
	}
	if same(spec.Stdout, spec.Stderr) {
		s.files[2] = s.files[1]
		return s, nil
	}
	s.files[2], err = s.out(spec.Stderr, uid)
	return s, err
}

func (s *stdio) stdin(from io.Reader, uid uint32) error {
	if f, ok := from.(*os.File); ok {
		s.files[0] = f
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.files[0] = r
	s.ends = append(s.ends, r)
	if from == nil {
		return w.Close()
	}
	s.input = w
	go func() { // the reader may block for ever, so that nobody waits for it
		io.Copy(w, from)
		w.Close()
	}()
	return r.Chown(int(uid), -1)
}

// out makes the container's end of an output.
func (s *stdio) out(to io.Writer, uid uint32) (*os.File, error) {
	if to == nil {
		to = io.Discard
	}
	if f, ok := to.(*os.File); ok {
		return f, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.ends, s.output = append(s.ends, w), append(s.output, r)
	s.copies.Go(func() {
		_, err := io.Copy(to, r)
		r.Close() // who writes on is told by SIGPIPE
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err == nil {
			s.err = err
		}
	})
	return w, w.Chown(int(uid), -1)
}

// started closes the ends that the container has by now.
func (s *stdio) started() {
	for _, f := range s.ends {
		f.Close()
	}
	s.ends = nil
}

// finish waits for the rest of the output after the container's end.
func (s *stdio) finish() error {
	if s.input != nil {
		s.input.Close()
	}
	done := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(done)
	}()
	select {
	case <-done:
		return s.err
	case <-time.After(outputDelay):
	}
	for _, f := range s.output {
		f.SetReadDeadline(time.Now())
	}
	return nil
}

// fds are the three descriptors for the container, all of them 3 or above.
func (s *stdio) fds() ([3]int, error) {
	var out [3]int
	for i, f := range s.files {
		out[i] = int(f.Fd())
		if out[i] > 2 {
			continue
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return out, os.NewSyscallError("dup", err)
		}
		s.ends = append(s.ends, os.NewFile(uintptr(fd), f.Name()))
		out[i] = fd
	}
	return out, nil
}

// same reports whether two writers are one.
func same(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}
