package registry

import (
	"context"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// Referrers lists the manifests of ref's repository that say that they belong to the one named d: signatures, attestations. A
// registry without the API for it may have the list under a tag. Source: distribution-spec, "Listing Referrers".
func (c *Client) Referrers(ctx context.Context, ref Ref, d digest.Digest) ([]image.Descriptor, error) {
	var all []image.Descriptor
	err := c.read(ctx, ref.Host, func(ctx context.Context, ep *endpoint) error {
		u, err := ep.repo(ctx, ref, "referrers/"+d.String())
		if err != nil {
			return err
		}
		resp, err := c.send(ctx, ep, request{
			method: http.MethodGet, url: u, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, scopes: []string{ep.scope(ref.Repo, "pull")},
		})
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusNotFound {
			Drain(resp.Body)
			all, err = c.taggedReferrers(ctx, ep, ref, d)
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return c.refused(ctx, ep, ref.Name()+"@"+d.String(), resp)
		}
		raw, err := c.readSmall(resp, MaxManifest)
		if err != nil {
			return err
		}
		all, err = readReferrers(raw)
		return err
	})
	return all, err
}

// taggedReferrers is the list that clients keep themselves. None is an empty list.
func (c *Client) taggedReferrers(ctx context.Context, ep *endpoint, ref Ref, d digest.Digest) ([]image.Descriptor, error) {
	ref.Digest, ref.Tag = "", d.Algorithm().String()+"-"+d.Encoded()
	raw, _, err := c.get(ctx, ep, ref)
	if diag.KindOf(err) == diag.NotFound && err != nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return readReferrers(raw)
}

func readReferrers(raw []byte) ([]image.Descriptor, error) {
	var index ocispec.Index
	if err := strictjson.Unmarshal(raw, &index); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the list of referrers cannot be read: %w", err)
	}
	return index.Manifests, nil
}
