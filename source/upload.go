package source

import (
	"context"
	"net/http"
	"net/url"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// upload gets the stream of the client that a URL of session.UploadHost names. It can be read once, so nothing is remembered.
func (g *getting) upload(ctx context.Context) (*download, error) {
	u, err := url.Parse(g.op.URL)
	if err != nil {
		return nil, err
	}
	s, ok := g.h.env.Session.(session.Uploader)
	if !ok {
		return nil, diag.Errorf(diag.NotFound, "%s: the client sends no such stream", u)
	}
	r, err := s.Upload(ctx, u.Path)
	if err != nil {
		return nil, err
	}
	d := &download{}
	return d, g.body(ctx, &http.Response{Body: r, ContentLength: -1}, d, "the client's stream")
}
