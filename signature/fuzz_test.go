package signature

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// FuzzObject checks signatures of commits and tags that nobody signed: whatever they are, they are refused.
func FuzzObject(f *testing.F) {
	f.Add([]byte("tree x\nauthor y\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----\n\nmessage\n"), "")
	f.Add([]byte("object x\ntag v1\n\nm\n-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGluUGFkZGluZ1BhZGRpbmdQYWRkaW5nUGFkZGlu")
	f.Fuzz(func(t *testing.T, raw []byte, key string) {
		err := Object(raw, key, Options{})
		if err == nil {
			t.Fatal("it was taken")
		}
		if diag.KindOf(err) == diag.Internal {
			t.Fatal(err)
		}
	})
}

// A commit whose signature has a million lines: they are joined once.
func TestSignatureOfMillionLines(t *testing.T) {
	raw := "tree x\ngpgsig " + beginPGP + "\n" + strings.Repeat(" x\n", 1_000_000) + "\nmessage\n"
	n := testing.AllocsPerRun(1, func() {
		if signed, sig := split(raw); len(sig) < 2_000_000 || signed != "tree x\n\nmessage\n" {
			t.Errorf("%d, %q", len(sig), signed[:min(len(signed), 100)])
		}
	})
	if n > 1_001_000 { // a line may be copied once; all of them together must not be copied for each
		t.Errorf("%v allocations", n)
	}
}
