package source

import (
	"strings"
	"testing"
)

// FuzzChooseRef reads what git says of a remote: what is chosen is a commit id and a name that are no options.
func FuzzChooseRef(f *testing.F) {
	id := strings.Repeat("a", 40)
	for _, s := range []string{id + "\tHEAD\n", "ref: refs/heads/main\tHEAD\n" + id + "\tHEAD\n", id + "\trefs/tags/v1\n" + id + "\trefs/tags/v1^{}\n", "ref: --upload-pack=x\tHEAD\n" + id + "\tHEAD\n", "\t\n"} {
		f.Add(s, "")
		f.Add(s, "v1")
	}
	f.Fuzz(func(t *testing.T, out, ref string) {
		if checkRef(ref) != nil {
			return
		}
		c := chooseRef(out, ref)
		if c == nil {
			return
		}
		if !shaPattern.MatchString(c.sha) || c.tag != "" && !shaPattern.MatchString(c.tag) {
			t.Errorf("%q %q are no ids", c.sha, c.tag)
		}
		if strings.HasPrefix(c.ref, "-") || checkRef(c.ref) != nil {
			t.Errorf("%q is no ref", c.ref)
		}
	})
}
