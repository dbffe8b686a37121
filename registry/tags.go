package registry

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/strictjson"
)

// tagPage reads one page of a tag list and where the next one is.
func (c *Client) tagPage(ctx context.Context, ep *endpoint, ref Ref, u *url.URL) ([]string, *url.URL, error) {
	resp, err := c.send(ctx, ep, request{method: http.MethodGet, url: u, scopes: []string{ep.scope(ref.Repo, "pull")}})
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, c.refused(ctx, ep, ref.Name(), resp)
	}
	raw, err := c.readSmall(resp, MaxManifest)
	if err != nil {
		return nil, nil, err
	}
	var doc struct{ Tags []string }
	if err := strictjson.Unmarshal(raw, &doc); err != nil {
		return nil, nil, diag.Errorf(diag.Unavailable, "%s: %s sent an invalid list of tags: %w", ref.Name(), ep.name, err)
	}
	next, err := nextPage(u, resp.Header.Get("Link"))
	if err != nil {
		return nil, nil, diag.Errorf(diag.Unavailable, "%s: %w", ref.Name(), err)
	}
	return doc.Tags, next, nil
}

// nextPage parses a Link header of rel="next". Source: RFC 8288. Another host is not followed.
func nextPage(u *url.URL, link string) (*url.URL, error) {
	target, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(rest, "next") {
		return nil, nil
	}
	next, err := u.Parse(target)
	if err != nil {
		return nil, err
	}
	if next.Host != u.Host || next.Scheme != u.Scheme {
		return nil, nil
	}
	return next, nil
}
