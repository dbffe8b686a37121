package buildkit

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/health"

	"github.com/strata-build/strata/diag"
)

// A daemon whose address names a file removed it, and one in a directory of others set the owner of what they put there.
func TestSocketInTheWrongPlace(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	os.WriteFile(file, []byte("precious"), 0o600)
	os.Symlink(file, link)
	for _, path := range []string{file, link} {
		if _, err := Listen("unix://"+path, "", TLSFiles{}); diag.KindOf(err) != diag.Conflict {
			t.Errorf("%s: %v", path, err)
		}
	}
	if data, err := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file became %q: %v", data, err)
	}
	if _, err := os.Lstat(link); err != nil {
		t.Error(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o777: false, 0o770: false, 0o777 | os.ModeSticky: true, 0o755: true, 0o700: true} {
		open := filepath.Join(dir, mode.String())
		os.Mkdir(open, 0o700)
		os.Chmod(open, mode)
		l, err := Listen("unix://"+filepath.Join(open, "s"), "", TLSFiles{})
		if (err == nil) != ok {
			t.Errorf("%v: %v", mode, err)
		}
		if err == nil {
			l.Close()
		}
	}
	if os.Geteuid() == 0 {
		theirs := filepath.Join(dir, "theirs")
		os.Mkdir(theirs, 0o755)
		os.Chown(theirs, 12345, 12345)
		if _, err := Listen("unix://"+filepath.Join(theirs, "s"), "", TLSFiles{}); diag.KindOf(err) != diag.Denied {
			t.Errorf("a directory of another user: %v", err)
		}
	}
}

// Connections that never say who they are stayed for two minutes each.
func TestSlowHandshake(t *testing.T) {
	files, _, _ := certificates(t, t.TempDir())
	l, err := Listen("tcp://127.0.0.1:0", "", files)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{greeting: time.Second, quota: newQuota(Limits{}), health: health.NewServer()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.accept(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, say := range []string{"", "\x16\x03\x01\x02\x00\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute)) // a hang must fail the test
		io.WriteString(c, say)
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q the connection stays", say)
		}
		c.Close()
	}
}

// A host without a certificate opens connections and says nothing, so that nobody else gets one.
func TestAttackManyGreetings(t *testing.T) {
	g := newGreetings()
	mallory := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}
	var ends []func()
	for range maxAddressGreetings {
		end, ok := g.begin(mallory)
		if !ok {
			t.Fatal("refused too early")
		}
		ends = append(ends, end)
	}
	if _, ok := g.begin(mallory); ok {
		t.Error("one more was taken")
	}
	if end, ok := g.begin(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 1}); !ok {
		t.Error("another host is refused")
	} else {
		end()
	}
	ends[0]()
	ends[0]() // again, as when a handshake fails after its greeting was taken
	if _, ok := g.begin(mallory); !ok {
		t.Error("refused although one has ended")
	}
	if _, ok := g.begin(mallory); ok {
		t.Error("one end counted twice")
	}
}
