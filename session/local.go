package session

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/outfile"
)

// MaxSecret is the size of the largest secret, in bytes: what Docker's clients accept too.
const MaxSecret = 500 << 10

// LocalOptions is what a client in this process gives to a build.
type LocalOptions struct {
	// Dirs are the directories that the build may read, by name: "context", "dockerfile", named contexts.
	Dirs map[string]Dir
	// Secrets by id.
	Secrets map[string]SecretSource
	// SSH lists, by id, one agent socket or any number of private key files; an empty list is $SSH_AUTH_SOCK.
	SSH map[string][]string
	// Credential looks up a registry's login. Nil is anonymous access everywhere.
	Credential func(ctx context.Context, host string) (Credential, error)
	// Outputs are the places that exporters may write to, by id.
	Outputs map[string]OutputTarget
}

// SecretSource says where a secret comes from: a file or an environment variable. With neither, it is the variable of
// the secret's name if that is set, as in Docker.
type SecretSource struct{ File, Env string }

// OutputTarget is a directory, a file, or an open stream; one of them is set.
type OutputTarget struct {
	Dir    string
	File   string
	Stream io.Writer
}

// Local is the session of a client in the same process. Its methods may be called from many goroutines.
type Local struct {
	opt     LocalOptions
	agents  map[string]agentSource
	mu      sync.Mutex
	secrets map[string][]byte
}

// NewLocal makes a session. It fails with diag.Invalid, diag.NotFound or diag.Denied if a directory, a secret's file, an
// agent's socket or a key cannot be used, so that a mistake in a flag is found before the build begins.
//
//	s, err := session.NewLocal(session.LocalOptions{Dirs: map[string]session.Dir{"context": {Path: "."}}})
func NewLocal(opt LocalOptions) (*Local, error) {
	l := &Local{opt: opt, agents: map[string]agentSource{}, secrets: map[string][]byte{}}
	for name, d := range opt.Dirs {
		st, err := os.Stat(d.Path)
		if err != nil {
			return nil, fileError(err, "directory of the build context %q", name)
		}
		if !st.IsDir() {
			return nil, diag.Errorf(diag.Invalid, "build context %q: %s is not a directory", name, d.Path)
		}
	}
	for id, s := range opt.Secrets {
		if s.File == "" {
			continue
		}
		if _, err := os.Stat(s.File); err != nil {
			return nil, fileError(err, "secret %q", id)
		}
	}
	for id, paths := range opt.SSH {
		a, err := newAgentSource(id, paths)
		if err != nil {
			return nil, err
		}
		l.agents[id] = a
	}
	return l, nil
}

// fileError says what a file was wanted for and turns the system's errors into kinds.
func fileError(err error, format string, args ...any) error {
	kind := diag.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = diag.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = diag.Denied
	}
	return diag.Errorf(kind, format+": %w", append(args, err)...)
}

// Dir returns a directory that was given under that name.
func (l *Local) Dir(_ context.Context, name string) (Dir, error) {
	d, ok := l.opt.Dirs[name]
	if !ok {
		return Dir{}, missing("build context", name, slices.Sorted(maps.Keys(l.opt.Dirs)), "--build-context NAME=PATH")
	}
	abs, err := filepath.Abs(d.Path)
	if err != nil {
		return Dir{}, diag.Errorf(diag.Internal, "build context %q: %w", name, err)
	}
	d.Path = abs
	return d, nil
}

// missing is the error for something that the client was not told of.
func missing(what, name string, have []string, flag string) error {
	err := diag.Errorf(diag.NotFound, "%s %q was not given to this build", what, name)
	if near := diag.Suggest(name, have); near != "" {
		return err.WithHint("did you mean %q?", near)
	}
	return err.WithHint("give it with %s", flag)
}

// Secret reads a secret once and keeps it for the life of the session: its file may be a pipe.
func (l *Local) Secret(_ context.Context, id string) ([]byte, error) {
	src, ok := l.opt.Secrets[id]
	if !ok {
		return nil, missing("secret", id, slices.Sorted(maps.Keys(l.opt.Secrets)), "--secret id="+id+",src=FILE")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.secrets[id]; ok {
		return slices.Clone(b), nil
	}
	b, err := readSecret(id, src)
	if err != nil {
		return nil, err
	}
	l.secrets[id] = b
	return slices.Clone(b), nil
}

func readSecret(id string, src SecretSource) ([]byte, error) {
	if src.File == "" {
		name := src.Env
		if name == "" {
			name = id
		}
		v, ok := os.LookupEnv(name)
		if !ok {
			return nil, diag.Errorf(diag.NotFound, "secret %q: environment variable %s is not set", id, name).
				WithHint("set the variable, or give a file with --secret id=%s,src=FILE", id)
		}
		return checkSecret(id, []byte(v))
	}
	f, err := os.Open(src.File)
	if err != nil {
		return nil, fileError(err, "secret %q", id)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSecret+1))
	if err != nil {
		return nil, fileError(err, "secret %q", id)
	}
	return checkSecret(id, b)
}

func checkSecret(id string, b []byte) ([]byte, error) {
	if len(b) > MaxSecret {
		return nil, diag.Errorf(diag.Exhausted, "secret %q is larger than %d KiB", id, MaxSecret>>10).
			WithHint("a secret is a key or a token; give larger files with --build-context and RUN --mount=type=bind")
	}
	return b, nil
}

// Credential asks the client's function.
func (l *Local) Credential(ctx context.Context, host string) (Credential, error) {
	if l.opt.Credential == nil {
		return Credential{}, nil
	}
	return l.opt.Credential(ctx, host)
}

// Output opens a destination; a directory is made if it does not exist, a file appears when it is closed.
func (l *Local) Output(_ context.Context, id string) (Output, error) {
	t, ok := l.opt.Outputs[id]
	switch {
	case !ok:
		return Output{}, missing("output", id, slices.Sorted(maps.Keys(l.opt.Outputs)), "--output")
	case t.Dir != "":
		d, err := outfile.OpenDir(t.Dir)
		if err != nil {
			return Output{}, diag.Errorf(diag.KindOf(err), "output directory: %w", err)
		}
		return Output{Dir: t.Dir}, d.Close()
	case t.File != "":
		f, err := outfile.Create(t.File)
		if err != nil {
			return Output{}, diag.Errorf(diag.KindOf(err), "output file: %w", err)
		}
		return Output{File: f}, nil
	case t.Stream != nil:
		return Output{File: keepOpen{t.Stream}}, nil
	}
	return Output{}, diag.Errorf(diag.Internal, "output %q has no destination", id)
}

// keepOpen lets an exporter close a stream that belongs to the client.
type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }
