package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// server is an engine that BuildKit's clients talk to.
type server struct {
	*site
	addr     string
	buildctl string
	proc     *proc
}

// serve starts "strata serve" on the site's root, whose base image is there.
func (s *site) serve() *server {
	s.t.Helper()
	buildctl, err := filepath.Abs("../../bin/buildctl")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := os.Stat(buildctl); err != nil {
		s.t.Skip("run scripts/clients first")
	}
	s.ok("daemon", "stop") // of the command that imported the base
	v := &server{site: s, addr: "unix://" + filepath.Join(filepath.Dir(s.root), "sock"), buildctl: buildctl}
	v.proc = s.start("serve", "--root", s.root, "--addr", v.addr)
	s.wait("the server's socket", func() bool {
		_, err := os.Stat(strings.TrimPrefix(v.addr, "unix://"))
		return err == nil
	})
	return v
}

// client starts a build of the context by a client of BuildKit.
func (v *server) client(file string, args ...string) *proc {
	v.t.Helper()
	all := append([]string{
		"--addr", v.addr, "build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=.", "--local=dockerfile=.", "--opt=filename=" + file,
	}, args...)
	cmd := exec.Command(v.buildctl, all...)
	cmd.Dir, cmd.Env = v.dir, v.env
	return v.startCmd(cmd)
}

func (v *server) stop() {
	v.t.Helper()
	v.proc.kill(syscall.SIGTERM)
	if r := v.proc.result(); r.code != 0 || strings.Contains(r.err, "panic") {
		v.t.Errorf("the server ended with code %d\n%s", r.code, r.err)
	}
}

func (s *site) clientFiles() {
	s.write("Dockerfile", "FROM base\nARG SALT\nCOPY salt /salt\nRUN echo $SALT > /b\n")
	s.write("Fails", "FROM base\nARG SALT\nRUN echo $SALT && exit 3\n")
	s.write("Waits", "FROM base\nARG SALT\nRUN echo be\"\"gun $SALT && sleep 1000\n")
	s.write("salt", "salt")
}

// A hundred clients build at once; some fail, some are interrupted, some are killed. Each of the others gets what it asked
// for, and of the rest nothing is left.
func TestHundredClients(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.clientFiles()
	v := s.serve()
	pid := s.engine()
	const kinds = 7
	var fine, failed, ended []*proc
	for i := range 100 {
		salt := fmt.Sprint("--opt=build-arg:SALT=", i%kinds)
		switch {
		case i%10 == 3:
			failed = append(failed, v.client("Fails", salt))
		case i%10 == 6:
			ended = append(ended, v.client("Waits", fmt.Sprint("--opt=build-arg:SALT=wait", i)))
		default:
			fine = append(fine, v.client("Dockerfile", salt, fmt.Sprint("--output=type=local,dest=out", len(fine))))
		}
	}
	for i, p := range ended {
		p.until("RUN echo")
		p.kill([]syscall.Signal{syscall.SIGINT, syscall.SIGKILL}[i%2])
	}
	for i, p := range fine {
		if r := p.result(); r.code != 0 {
			t.Fatalf("client %d: code %d\n%s", i, r.code, r.err)
		}
		want := salted(p)
		if got, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprint("out", i), "b")); err != nil || string(got) != want+"\n" {
			t.Errorf("client %d got %q, want %q: %v", i, got, want, err)
		}
	}
	for _, p := range failed {
		if r := p.result(); r.code == 0 || !strings.Contains(r.err, "exit code: 3") {
			t.Errorf("a build that must fail: code %d\n%s", r.code, r.err)
		}
	}
	s.wait("the end of all steps", func() bool { return len(s.leftOfSteps()) == 0 })
	if now := s.engine(); now != pid {
		t.Errorf("the server is process %d, it was %d", now, pid)
	}
	v.stop()
	s.healthy()
}

// salted is the value of SALT that a client was started with.
func salted(p *proc) string {
	for _, a := range p.cmd.Args {
		if v, ok := strings.CutPrefix(a, "--opt=build-arg:SALT="); ok {
			return v
		}
	}
	return ""
}

// The server does not grow over many builds of its clients.
func TestClientsSoak(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.clientFiles()
	v := s.serve()
	builds := 500
	if testing.Short() {
		builds = 50
	}
	soak := func(from, to int) {
		for i := from; i < to; i += 4 {
			var procs []*proc
			for k := i; k < i+4; k++ {
				file := "Dockerfile"
				if k%10 == 7 {
					file = "Fails"
				}
				procs = append(procs, v.client(file, fmt.Sprint("--opt=build-arg:SALT=", k/2)))
			}
			for k, p := range procs {
				if r := p.result(); (r.code != 0) != ((i+k)%10 == 7) {
					t.Fatalf("build %d: code %d\n%s", i+k, r.code, r.err)
				}
			}
		}
	}
	soak(0, 100)
	before := s.usage()
	soak(100, 100+builds)
	s.wait("descriptors to be closed", func() bool { return s.usage().fds <= before.fds+2 })
	after := s.usage()
	t.Logf("before %+v, after %+v", before, after)
	if after.rss > before.rss+32<<20 {
		t.Errorf("the server has grown from %d to %d MiB", before.rss>>20, after.rss>>20)
	}
	if after.threads > before.threads+8 {
		t.Errorf("the server has %d threads, before %d", after.threads, before.threads)
	}
	v.stop()
	s.healthy()
}
