package cache

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// azure is a container of Azure's blob storage. Requests are signed with the account's key.
// Source: learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
type azure struct {
	base    *url.URL // with the container
	account string
	key     []byte
}

// azureVersion is the version of the service's protocol.
const azureVersion = "2021-08-06"

func newAzure(s Spec, rules *Rules) (*objects, error) {
	raw := s.attr("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "")
	if raw == "" {
		return nil, diag.Errorf(diag.Invalid, "either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache")
	}
	base, err := url.Parse(raw)
	if err != nil || base.Host == "" {
		return nil, diag.Errorf(diag.Invalid, "azure storage account url provided is not a valid url: %s", raw)
	}
	host, _, _ := strings.Cut(base.Hostname(), ".")
	b := &azure{account: s.attr("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", host)}
	if b.key, err = base64.StdEncoding.DecodeString(s.Attrs["secret_access_key"]); err != nil || len(b.key) == 0 {
		return nil, diag.Errorf(diag.Invalid, "azblob cache: secret_access_key must be the account's key, in base64")
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + "/" + s.attr("container", "BUILDKIT_AZURE_STORAGE_CONTAINER", "buildkit-cache")
	b.base = base
	prefix := s.attr("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX", "")
	return &objects{
		kind: "azblob", title: "exporting cache to Azure Blob Storage", where: b.base.String(), bucket: b, client: rules.stayingClient(),
		manifests: path.Join(prefix, s.attr("manifests_prefix", "", "manifests")) + "/",
		layers:    path.Join(prefix, s.attr("blobs_prefix", "", "blobs")) + "/",
		names:     strings.Split(s.attr("name", "", "buildkit"), ";"),
	}, nil
}

func (b *azure) url(key string) *url.URL {
	u := *b.base
	if key != "" {
		u.Path += "/" + key
		u.RawPath = escape(u.Path)
	}
	return &u
}

// create makes the container, which may be there.
func (b *azure) create(ctx context.Context, o *objects) error {
	resp, err := o.do(ctx, http.MethodPut, "", nil, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusConflict {
		return o.refused(resp, "")
	}
	resp.Body.Close()
	return nil
}

// prepare signs a request.
func (b *azure) prepare(req *http.Request, _ graph.Digest) error {
	b.sign(req, time.Now().UTC())
	return nil
}

func (b *azure) sign(req *http.Request, now time.Time) {
	h := req.Header
	h.Set("X-Ms-Version", azureVersion)
	h.Set("X-Ms-Date", now.Format(http.TimeFormat))
	resource := "/" + b.account + req.URL.EscapedPath()
	if req.Method == http.MethodPut {
		if req.URL.Path == b.base.Path {
			req.URL.RawQuery = "restype=container"
			resource += "\nrestype:container"
		} else {
			h.Set("X-Ms-Blob-Type", "BlockBlob")
		}
	}
	length := ""
	if req.ContentLength > 0 {
		length = itoa(req.ContentLength)
	}
	var names []string
	for k := range h {
		if strings.HasPrefix(strings.ToLower(k), "x-ms-") {
			names = append(names, strings.ToLower(k))
		}
	}
	slices.Sort(names)
	lines := []string{req.Method, "", "", length, "", "", "", "", "", "", "", h.Get("Range")}
	for _, k := range names {
		lines = append(lines, k+":"+h.Get(k))
	}
	text := strings.Join(append(lines, resource), "\n")
	h.Set("Authorization", "SharedKey "+b.account+":"+base64.StdEncoding.EncodeToString(mac(b.key, text)))
}
