package signature

import (
	"encoding/pem"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/strata-build/strata/diag"
)

const (
	beginPGP = "-----BEGIN PGP SIGNATURE-----"
	beginSSH = "-----BEGIN SSH SIGNATURE-----"
)

// Object checks the signature of a git commit or tag, in the form that `git cat-file commit` (or tag) prints. The key is an
// armored OpenPGP key for an OpenPGP signature, one line of an authorized_keys file for an ssh signature. Source: git's
// Documentation/gitformat-signature.txt.
func Object(raw []byte, key string, opt Options) error {
	signed, sig := split(string(raw))
	switch {
	case strings.HasPrefix(sig, beginPGP):
		return Detached(strings.NewReader(signed), sig, key, opt)
	case strings.HasPrefix(sig, beginSSH):
		return checkSSH(signed, sig, key)
	case sig == "":
		return diag.Errorf(diag.Denied, "git object is not signed")
	}
	return diag.Errorf(diag.Unsupported, "the git object has a signature of an unknown kind")
}

// split takes the signature out of an object. A commit has it as a header, whose further lines begin with a space; what is signed
// is the commit without the header. A tag ends with it.
func split(raw string) (signed, sig string) {
	if strings.HasPrefix(raw, "object ") {
		at := max(strings.LastIndex(raw, "\n"+beginPGP), strings.LastIndex(raw, "\n"+beginSSH))
		if at < 0 {
			return raw, ""
		}
		return raw[:at+1], raw[at+1:]
	}
	headers, body, _ := strings.Cut(raw, "\n\n")
	var rest []string
	found := map[string]*strings.Builder{"gpgsig": {}, "gpgsig-sha256": {}}
	in := ""
	for line := range strings.SplitSeq(headers, "\n") {
		if more, ok := strings.CutPrefix(line, " "); ok && in != "" {
			found[in].WriteString(more + "\n")
			continue
		}
		in = ""
		if name, value, _ := strings.Cut(line, " "); name == "gpgsig" || name == "gpgsig-sha256" {
			in = name
			found[name].WriteString(value + "\n")
			continue
		}
		rest = append(rest, line)
	}
	sig = found["gpgsig"].String()
	if sig == "" {
		sig = found["gpgsig-sha256"].String()
	}
	return strings.Join(rest, "\n") + "\n\n" + body, sig
}

func checkSSH(signed, armored, key string) error {
	block, _ := pem.Decode([]byte(armored))
	if block == nil || block.Type != "SSH SIGNATURE" {
		return diag.Errorf(diag.Denied, "failed to decode the ssh signature")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return diag.Errorf(diag.Denied, "failed to parse ssh signature: %w", err)
	}
	if sig.Namespace != "git" {
		return diag.Errorf(diag.Denied, "the ssh signature was made for %q, not for git", sig.Namespace)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key))
	if err != nil {
		return diag.Errorf(diag.Invalid, "failed to parse ssh public key: %w", err)
	}
	if err := sshsig.Verify(strings.NewReader(signed), sig, pub, sig.HashAlgorithm, sig.Namespace); err != nil {
		return diag.Errorf(diag.Denied, "failed to verify ssh signature: %w", err)
	}
	return nil
}
