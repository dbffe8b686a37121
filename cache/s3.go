package cache

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// s3 is a bucket of a store that speaks Amazon's protocol. Requests are signed with version 4 of the signature, if there is
// a key.
// Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
type s3 struct {
	base        *url.URL // with the bucket
	region      string
	key, secret string
	token       string
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// attr returns an attribute, or what the environment or the last value says.
func (s Spec) attr(name, env, def string) string {
	if v, ok := s.Attrs[name]; ok {
		return v
	}
	return cmp.Or(os.Getenv(env), def)
}

func newS3(s Spec, rules *Rules) (*objects, error) {
	b := &s3{
		region: s.attr("region", "AWS_REGION", ""),
		key:    s.Attrs["access_key_id"], secret: s.Attrs["secret_access_key"], token: s.Attrs["session_token"],
	}
	name := s.attr("bucket", "AWS_BUCKET", "")
	switch {
	case name == "":
		return nil, diag.Errorf(diag.Invalid, "bucket ($AWS_BUCKET) not set for s3 cache")
	case b.region == "":
		return nil, diag.Errorf(diag.Invalid, "region ($AWS_REGION) not set for s3 cache")
	case (b.key == "") != (b.secret == ""):
		return nil, diag.Errorf(diag.Invalid, "half of the credentials for the s3 cache is missing").WithHint("set both access_key_id and secret_access_key")
	}
	endpoint := s.attr("endpoint_url", "", "https://s3."+b.region+".amazonaws.com")
	base, err := url.Parse(endpoint)
	if err != nil || base.Host == "" {
		return nil, diag.Errorf(diag.Invalid, "s3 cache: the endpoint %s is no URL", endpoint)
	}
	byPath, err := flag(s, "use_path_style", false)
	if err != nil {
		return nil, err
	}
	if byPath {
		base.Path = strings.TrimSuffix(base.Path, "/") + "/" + name
	} else {
		base.Host = name + "." + base.Host
	}
	b.base = base
	if b.key == "" && rules.lends(base) {
		b.key, b.secret, b.token = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
	}
	touch := 24 * time.Hour
	if d, err := time.ParseDuration(s.Attrs["touch_refresh"]); err == nil {
		touch = d
	}
	prefix := s.Attrs["prefix"]
	return &objects{
		kind: "s3", title: "exporting cache to Amazon S3", where: base.String(), bucket: b, touch: touch, client: rules.stayingClient(),
		manifests: prefix + s.attr("manifests_prefix", "", "manifests/"), layers: prefix + s.attr("blobs_prefix", "", "blobs/"),
		names: strings.Split(s.attr("name", "", "buildkit"), ";"),
	}, nil
}

func (b *s3) url(key string) *url.URL {
	u := *b.base
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + key
	u.RawPath = escape(u.Path)
	return &u
}

// escape writes a path as the signature has it: all but unreserved characters and slashes escaped.
func escape(p string) string {
	var out strings.Builder
	for _, c := range []byte(p) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~/", c) >= 0 {
			out.WriteByte(c)
		} else {
			out.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
	}
	return out.String()
}

func (b *s3) create(context.Context, *objects) error { return nil }

// prepare signs a request.
func (b *s3) prepare(req *http.Request, sum graph.Digest) error {
	return b.sign(req, sum, time.Now().UTC())
}

func (b *s3) sign(req *http.Request, sum graph.Digest, now time.Time) error {
	if b.key == "" {
		return nil // nobody in particular asks
	}
	date := now.Format("20060102")
	req.Header.Set("X-Amz-Date", now.Format("20060102T150405Z"))
	req.Header.Set("X-Amz-Content-Sha256", sum.Encoded())
	if b.token != "" {
		req.Header.Set("X-Amz-Security-Token", b.token)
	}
	signed := map[string]string{"host": req.URL.Host}
	for k, v := range req.Header {
		if k = strings.ToLower(k); strings.HasPrefix(k, "x-amz-") || k == "range" {
			signed[k] = strings.Join(v, ",")
		}
	}
	names := make([]string, 0, len(signed))
	for k := range signed {
		names = append(names, k)
	}
	slices.Sort(names)
	var headers strings.Builder
	for _, k := range names {
		headers.WriteString(k + ":" + signed[k] + "\n")
	}
	list := strings.Join(names, ";")
	canonical := strings.Join([]string{req.Method, req.URL.EscapedPath(), req.URL.RawQuery, headers.String(), list, sum.Encoded()}, "\n")
	scope := date + "/" + b.region + "/s3/aws4_request"
	hash := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{"AWS4-HMAC-SHA256", now.Format("20060102T150405Z"), scope, hex.EncodeToString(hash[:])}, "\n")
	k := []byte("AWS4" + b.secret)
	for _, part := range []string{date, b.region, "s3", "aws4_request", text} {
		k = mac(k, part)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+b.key+"/"+scope+", SignedHeaders="+list+", Signature="+hex.EncodeToString(k))
	return nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
