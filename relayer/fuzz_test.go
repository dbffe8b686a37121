package relayer

import "testing"

// FuzzLists reads the lists of packages that an image holds.
func FuzzLists(f *testing.F) {
	for _, s := range []string{"P:a\nV:1\nF:usr\nR:x\n\n", "%NAME%\na\n\n%DEPENDS%\nb\n", "/nix/store/x\nhash\n1\n\n0\n", `[{"path":"/nix/store/a","references":["/nix/store/b"]}]`, "-1\n", "/nix/store/x\nh\n1\nd\n99999999999\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		apkInstalled(string(data))
		sections(string(data))
		_, _ = registration(string(data))
		_, _ = readGraph(data)
		names(string(data))
	})
}
