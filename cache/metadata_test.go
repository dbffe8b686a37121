package cache

import (
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
)

// A client names a cloud's metadata service as the place of its cache: no connection is made to it.
func TestCacheAtTheMetadataService(t *testing.T) {
	rules := &Rules{}
	s3, err := newS3(Spec{"s3", map[string]string{"bucket": "b", "region": "r", "endpoint_url": "http://169.254.169.254", "use_path_style": "true"}}, rules)
	if err != nil {
		t.Fatal(err)
	}
	azure, err := newAzure(Spec{"azblob", map[string]string{"account_url": "http://[fd00:ec2::254]/", "secret_access_key": "eA=="}}, rules)
	if err != nil {
		t.Fatal(err)
	}
	gha, err := newActions(Spec{"gha", map[string]string{"token": actionsToken(time.Hour), "url_v2": "http://100.100.100.200/"}}, rules)
	if err != nil {
		t.Fatal(err)
	}
	for name, load := range map[string]func() error{
		"s3":     func() error { _, err := s3.load(t.Context()); return err },
		"azblob": func() error { _, err := azure.load(t.Context()); return err },
		"gha":    func() error { _, err := gha.load(t.Context()); return err },
	} {
		if err := load(); err == nil || diag.KindOf(err) != diag.Denied && !strings.Contains(err.Error(), "metadata service") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
