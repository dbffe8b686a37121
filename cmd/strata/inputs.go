package main

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// inputs are the context and the Dockerfile of a build: the directories that its session serves, and what the request
// says of them.
type inputs struct {
	context    string // "" = the session's directory "context", else a URL
	dockerfile string // name within the session's directory "dockerfile", or within a remote context
	contexts   map[string]string
	dirs       map[string]session.Dir
	temp       []string
}

// remote matches what Docker takes for a URL of a context.
var remote = regexp.MustCompile(`^(https?://|git://|ssh://|git@|github\.com/)|^[a-z0-9_.-]+@[^/]+:`)

// newInputs reads the arguments of a build. What comes on standard input is put in a temporary directory, which close
// removes.
func newInputs(c *cli, contextArg, file string, contexts map[string]string) (_ *inputs, err error) {
	in := &inputs{contexts: map[string]string{}, dirs: map[string]session.Dir{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	if contextArg == "-" && file == "-" {
		return nil, invalid("the build context and the Dockerfile cannot both come from standard input")
	}
	if err := in.setContext(c, contextArg); err != nil {
		return nil, err
	}
	if err := in.setFile(c, file); err != nil {
		return nil, err
	}
	return in, in.setNamed(contexts)
}

func (in *inputs) setContext(c *cli, arg string) error {
	switch {
	case arg == "-":
		dir, err := in.tempDir()
		if err != nil {
			return err
		}
		if err := unpackContext(bufio.NewReaderSize(c.in, 64<<10), dir); err != nil {
			return err
		}
		in.dirs["context"] = session.Dir{Path: dir, Key: "stdin"}
		return nil
	case remote.MatchString(arg):
		in.context = arg
		return nil
	}
	st, err := os.Stat(arg)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nearFile(diag.Errorf(diag.NotFound, "the build context %s does not exist", arg), arg)
	case err != nil:
		return diag.Errorf(diag.Denied, "the build context: %w", err)
	case !st.IsDir():
		return diag.Errorf(diag.Invalid, "the build context %s is not a directory", arg).
			WithHint("to name a Dockerfile, use --file: strata build -f %s %s", arg, filepath.Dir(arg))
	}
	in.dirs["context"] = session.Dir{Path: arg}
	return nil
}

func (in *inputs) setFile(c *cli, file string) error {
	if file == "-" {
		return in.readFile(c.in, "standard input")
	}
	if st, err := os.Stat(file); err == nil && st.Mode()&fs.ModeNamedPipe != 0 { // strata build -f <(generate) .
		f, err := openPipe(file)
		if err != nil {
			return err
		}
		defer f.Close()
		return in.readFile(f, file)
	}
	switch {
	case in.context != "":
		in.dockerfile = file
		return nil
	case file == "":
		dir := in.dirs["context"]
		in.dockerfile, in.dirs["dockerfile"] = "Dockerfile", dir
		if _, err := os.Stat(filepath.Join(dir.Path, "Dockerfile")); errors.Is(err, fs.ErrNotExist) {
			if st, err := os.Stat(filepath.Join(dir.Path, "dockerfile")); err == nil && st.Mode().IsRegular() {
				in.dockerfile = "dockerfile"
			}
		}
	default:
		// As in Docker, a path that does not exist here may be one within the context.
		path := file
		if _, err := os.Stat(path); err != nil && !filepath.IsAbs(file) {
			if inside := filepath.Join(in.dirs["context"].Path, file); exists(inside) {
				path = inside
			}
		}
		in.dockerfile, in.dirs["dockerfile"] = filepath.Base(path), session.Dir{Path: filepath.Dir(path)}
	}
	path := filepath.Join(in.dirs["dockerfile"].Path, in.dockerfile)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e := diag.Errorf(diag.NotFound, "no Dockerfile at %s", path).WithHint("name another file with --file")
		return nearFile(e, path)
	case err != nil:
		return diag.Errorf(diag.Invalid, "the Dockerfile: %w", err)
	case st.IsDir():
		return diag.Errorf(diag.Invalid, "the Dockerfile %s is a directory", path)
	}
	return nil
}

// pipePatience is how long somebody may take to begin to write to a pipe with a name. One that the shell has opened has a writer.
const pipePatience = 10 * time.Second

// openPipe opens a pipe for reading. To open one that nobody writes to would wait for ever.
func openPipe(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, diag.Errorf(diag.Denied, "the Dockerfile: %w", &os.PathError{Op: "open", Path: name, Err: err})
	}
	f := os.NewFile(uintptr(fd), name) // non-blocking: it can have a deadline
	if strings.HasPrefix(name, "/dev/") || strings.HasPrefix(name, "/proc/") {
		return f, nil
	}
	events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(pipePatience); ; {
		n, err := unix.Poll(events, int(max(time.Until(end), 0).Milliseconds()))
		switch {
		case err == unix.EINTR: // by a signal that is not for this
		case err != nil:
			return nil, errors.Join(diag.Errorf(diag.Invalid, "the Dockerfile: %w", &os.PathError{Op: "poll", Path: name, Err: err}), f.Close())
		case n == 0:
			return nil, errors.Join(diag.Errorf(diag.Invalid, "nobody writes to the pipe %s, which is to be the Dockerfile", name), f.Close())
		default:
			return f, nil
		}
	}
}

// readFile takes a Dockerfile that can be read only once.
func (in *inputs) readFile(r io.Reader, name string) error {
	dir, err := in.tempDir()
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err != nil {
		return diag.Errorf(diag.Invalid, "the Dockerfile on %s: %w", name, err)
	}
	if len(text) > maxDockerfile {
		return diag.Errorf(diag.Exhausted, "the Dockerfile on %s has more than %d bytes", name, maxDockerfile)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600); err != nil {
		return diag.Errorf(diag.Internal, "the Dockerfile: %w", err)
	}
	in.dockerfile, in.dirs["dockerfile"] = "Dockerfile", session.Dir{Path: dir, Key: "stdin"}
	return nil
}

// setNamed makes directories of the session of the named contexts that are paths.
func (in *inputs) setNamed(contexts map[string]string) error {
	for name, value := range contexts {
		scheme, _, isURL := strings.Cut(value, "://")
		switch {
		case isURL && scheme == "oci-layout":
			said := strings.TrimPrefix(value, "oci-layout://")
			path, ref, ok := archive.SplitPath(said)
			if !ok {
				return diag.Errorf(diag.NotFound, "--build-context %s: the OCI layout %s does not exist", name, said).
					WithHint("write it as oci-layout://DIR, oci-layout://DIR:TAG or oci-layout://DIR@DIGEST")
			}
			if ref = cmp.Or(ref, "latest"); ref[0] != '@' {
				ref = ":" + ref
			}
			// A path may have what the names of images may not, such as colons and capitals.
			id := "layout-" + digest.FromString(path).Encoded()[:16]
			in.dirs[id] = session.Dir{Path: path}
			in.contexts[name] = "oci-layout://" + id + ref
		case isURL, remote.MatchString(value), strings.HasPrefix(value, "target:"):
			in.contexts[name] = value
		default:
			if !exists(value) {
				return nearFile(diag.Errorf(diag.NotFound, "--build-context %s: the directory %s does not exist", name, value), value)
			}
			in.dirs[name] = session.Dir{Path: value}
			in.contexts[name] = "local:" + name
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// nearFile adds the file of the same directory with the most similar name as a hint.
func nearFile(err *diag.Error, path string) error {
	entries, _ := os.ReadDir(filepath.Dir(path))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if near := diag.Suggest(filepath.Base(path), names); near != "" {
		return err.WithHint("did you mean %s?", filepath.Join(filepath.Dir(path), near))
	}
	return err
}

func (in *inputs) tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "strata-input-")
	if err != nil {
		return "", diag.Errorf(diag.Internal, "standard input: %w", err)
	}
	in.temp = append(in.temp, dir)
	return dir, nil
}

// close removes what came on standard input.
func (in *inputs) close() error {
	var err error
	for _, dir := range in.temp {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}
