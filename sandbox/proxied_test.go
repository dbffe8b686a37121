package sandbox

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/graph"
)

// answering is a proxy that says who asks, and reaches out itself.
type answering struct {
	ca      string
	reached chan error
}

func (a *answering) CA() []byte { return []byte(a.ca) }

func (a *answering) Serve(l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) func() {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := dial(r.Context(), "tcp4", r.URL.Host)
		if err == nil {
			c.Close()
		}
		a.reached <- err
		io.WriteString(w, "seen "+r.URL.Path)
	})}
	go s.Serve(l)
	return func() { s.Close() }
}

func TestProxied(t *testing.T) {
	b := newBox(t, "")
	os.Symlink("busybox", filepath.Join(b.rootfs, "bin/wget"))
	os.MkdirAll(filepath.Join(b.rootfs, "etc/ssl/certs"), 0o755)
	b.write("etc/ssl/certs/ca-certificates.crt", "theirs\n")
	before, _ := os.Stat(filepath.Join(b.rootfs, "etc/ssl/certs/ca-certificates.crt"))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &answering{ca: "-----BEGIN\nours\n", reached: make(chan error, 1)}
	step := func(s *Spec) {
		s.Network, s.Proxy, s.Env = graph.NetworkHostBy, p, append(s.Env, "HTTP_PROXY=http://other")
	}
	host := l.Addr().String()
	out, _ := b.sh(t, "env NO_PROXY= no_proxy= wget -q -O- http://"+host+"/x; cat /etc/ssl/certs/ca-certificates.crt; ip route; echo $HTTP_PROXY; nc -w 1 "+strings.Replace(host, ":", " ", 1)+" </dev/null || echo alone", step)
	for _, want := range []string{"seen /x", "theirs", "proxy CA begin", "ours", "169.254.91.0/30", "http://169.254.91.1:", "alone"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if strings.Contains(out, "default via") {
		t.Errorf("there is another way out: %q", out)
	}
	if err := <-p.reached; err != nil {
		t.Error("the proxy cannot get out:", err)
	}
	file := filepath.Join(b.rootfs, "etc/ssl/certs/ca-certificates.crt")
	data, _ := os.ReadFile(file)
	after, _ := os.Stat(file)
	if string(data) != "theirs\n" || !after.ModTime().Equal(before.ModTime()) || after.Mode() != before.Mode() {
		t.Errorf("%q %v", data, after)
	}
	b.sh(t, "echo more >>/etc/ssl/certs/ca-certificates.crt", step)
	if data, _ := os.ReadFile(file); string(data) != "theirs\nmore\n" {
		t.Errorf("%q", data)
	}
	if _, exit := b.sh(t, "dd if=/dev/zero bs=1048576 count=11 of=/etc/ssl/certs/ca-certificates.crt 2>/dev/null; exit 4", step); exit.Code != 4 || exit.Unclean == nil {
		t.Errorf("%+v", exit)
	}
	b.sh(t, "rm /etc/ssl/certs/ca-certificates.crt; ln -s /etc/passwd /etc/ssl/certs/ca-certificates.crt", func(s *Spec) {
		b.write("etc/ssl/certs/ca-certificates.crt", "theirs\n")
		step(s)
	})
	if data, _ := os.ReadFile(filepath.Join(b.rootfs, "etc/passwd")); strings.Contains(string(data), "ours") {
		t.Error("the certificate went through a link")
	}
}
