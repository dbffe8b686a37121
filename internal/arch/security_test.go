package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityPageNamesTests requires that every test that docs/security.md names exists: a promise without its test is none. "TestX…"
// stands for all whose name begins so.
func TestSecurityPageNamesTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	var have strings.Builder
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(data, -1) {
			have.WriteString("\n" + string(m[1]) + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*…?`).FindAllString(string(page), -1)
	if len(named) < 150 {
		t.Fatalf("the page names only %d tests", len(named))
	}
	for _, name := range named {
		want, some := strings.CutSuffix(name, "…")
		if !some {
			want += "\n"
		}
		if !strings.Contains(have.String(), "\n"+want) {
			t.Errorf("docs/security.md names %s, which does not exist", name)
		}
	}
}
