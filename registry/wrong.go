package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

// Wrong is the error of a transfer that has ended with other bytes than those that were asked for.
type Wrong struct {
	err    error
	mirror bool // a mirror has sent some of them
}

func (w *Wrong) Error() string { return w.err.Error() }

// Unwrap returns what was wrong.
func (w *Wrong) Unwrap() error { return w.err }

// Limits of wrong answers: how many the registry itself may give for a digest until it is believed to have nothing else, and how
// many a [Client] remembers.
const (
	maxWrong     = 3
	maxWrongKept = 10_000
)

// wrongPause is how long the first further try of a transfer waits.
const wrongPause = 100 * time.Millisecond

// Again runs f, which is a whole transfer, and runs it again as long as it ends with [Wrong]: the client remembers who sent wrong
// bytes, and asks another mirror the next time, or the registry. f must begin anew.
func Again(ctx context.Context, f func() error) error {
	var said []string
	for n := 0; ; n++ {
		err := f()
		var wrong *Wrong
		if err == nil || !errors.As(err, &wrong) || ctx.Err() != nil {
			return err
		}
		if n >= maxWrong+len(said) || n >= 8 { // each try that a mirror has spoilt is one more
			return besideMirrors(err, said)
		}
		if wrong.mirror {
			said = append(said, wrong.Error())
		}
		select {
		case <-time.After(wrongPause << n):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Blame returns the error of a transfer whose bytes have the digest got. r is what [Client.FetchUnverified] has returned, or another
// reader, whose place then is asked again in vain.
func Blame(r io.Reader, want, got digest.Digest) error {
	if b, ok := r.(interface{ Blame(got digest.Digest) error }); ok {
		return b.Blame(got)
	}
	return diag.Errorf(diag.Invalid, "the bytes received for %s have the digest %s", want, got)
}

// Reason is why what was read of r could not be used: wrong bytes if r, read to its end, says that they are, else err. The caller
// makes sure that nobody else reads r.
func Reason(r io.Reader, err error) error {
	if diag.KindOf(err) != diag.Invalid {
		return err
	}
	var wrong *Wrong
	if _, rerr := io.Copy(io.Discard, r); errors.As(rerr, &wrong) {
		return rerr
	}
	return err
}

// Blame notes that the bytes that were read are wrong, for all that sent some.
func (b *blob) Blame(got digest.Digest) error {
	return b.wrong("sent bytes whose digest is %s", got)
}

// wrong notes that what the endpoints have sent is not the blob.
func (b *blob) wrong(format string, args ...any) error {
	for _, ep := range b.used {
		b.c.net.blame(ep, b.desc.Digest)
	}
	if b.body != nil {
		_ = b.body.Close() // what follows is of no use
		b.body = nil
	}
	return b.sentWrong(b.used, format, args...)
}

// sentWrong is the error of what the endpoints, mirrors or the registry, have sent.
func (b *blob) sentWrong(from []*endpoint, format string, args ...any) error {
	who, mirror := "the registry", false
	for _, ep := range from {
		if ep != b.eps[len(b.eps)-1] { // the last one is the registry
			who, mirror = "the mirror "+ep.name, true
		}
	}
	return &Wrong{diag.Errorf(diag.Invalid, "%s: %s %s", b.what(), who, fmt.Sprintf(format, args...)), mirror}
}

// blame counts a wrong answer of an endpoint.
func (n *network) blame(ep *endpoint, d digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wrongs == nil || len(n.wrongs) >= maxWrongKept {
		n.wrongs = map[wrongAnswer]int{}
	}
	n.wrongs[wrongAnswer{ep, d}]++
}

type wrongAnswer struct {
	ep     *endpoint
	digest digest.Digest
}

// honest leaves out the mirrors that have sent wrong bytes for a digest. The registry, the last one, always stays.
func (n *network) honest(eps []*endpoint, d digest.Digest) []*endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*endpoint
	for i, ep := range eps {
		if i == len(eps)-1 || n.wrongs[wrongAnswer{ep, d}] == 0 {
			out = append(out, ep)
		}
	}
	return out
}
