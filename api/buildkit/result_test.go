package buildkit

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// What a frontend says of its result is checked before anything is exported.
func TestResultsAreChecked(t *testing.T) {
	b := &bridge{s: &Server{quota: newQuota(Limits{})}}
	for meta, want := range map[string]string{
		metaPlatforms + " null":                       "invalid empty platforms index",
		metaPlatforms + ` {"Platforms":[{}]}`:         "invalid empty platform key",
		metaPlatforms + ` {"Platforms":[{"ID":"x"}]}`: "invalid platform value",
		metaPlatforms + " [":                          "cannot be read",
		metaConfig + " null":                          "invalid null image config",
		metaConfig + ` {"architecture":"amd64"}`:      "os and architecture must be specified together",
		metaConfig + " {":                             "failed to parse image config",
	} {
		key, value, _ := strings.Cut(meta, " ")
		_, _, err := b.plan(&result{meta: map[string][]byte{key: []byte(value)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", meta, err, want)
		}
	}
}

func TestPlatformsWarning(t *testing.T) {
	native := graph.FormatPlatform(engine.Native())
	for _, c := range []struct {
		asked string
		multi bool
		made  []string
		want  string
	}{
		{"", false, []string{native}, ""},
		{"linux/arm64,linux/amd64", true, []string{"linux/amd64", "linux/arm64"}, ""},
		{"linux/arm64,linux/amd64", false, []string{"linux/amd64"}, "not multi-platform"},
		{"linux/s390x", false, []string{"linux/amd64"}, `"linux/s390x" does not match result platform "linux/amd64"`},
		{"", true, []string{"linux/arm64", "linux/s390x"}, "do not match result platforms linux/arm64,linux/s390x"},
		{"/", false, []string{native}, "Invalid platform"},
		{"windows/amd64", false, []string{"windows(1.2)/amd64"}, ""},
	} {
		plan := &image.Plan{}
		for _, name := range c.made {
			p, err := graph.ParsePlatform(name)
			if err != nil {
				t.Fatal(err)
			}
			plan.Targets = append(plan.Targets, image.Target{Platform: p})
		}
		got := platformsWarning(c.asked, plan, c.multi)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q made as %v: %q, want %q", c.asked, c.made, got, c.want)
		}
	}
}

// What is no tree was made for no platform, so nothing is said of it.
func TestResultThatIsAnAnswer(t *testing.T) {
	tree := &ref{id: "x"}
	for _, c := range []struct {
		res  result
		want bool
	}{
		{result{}, true},
		{result{single: &ref{}}, true},
		{result{single: tree}, false},
		{result{many: map[string]*ref{"a": tree}}, false},
		{result{single: &ref{}, meta: map[string][]byte{metaPlatforms: []byte("{}")}}, false},
	} {
		if c.res.answer() != c.want {
			t.Errorf("%+v", c.res)
		}
	}
}
