package source

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/strata-build/strata/diag"
)

// verify checks the signature of the commit, or of the annotated tag that names it, with the key that the build gives.
// git leaves the work to gpg or to ssh-keygen, which have to be installed.
func (k *checkout) verify(ctx context.Context) error {
	sig := k.op.Signature
	object, what := k.c.sha, "commit"
	if k.c.tag != "" && !sig.IgnoreSignedTag {
		if _, err := k.run.git(ctx, k.bare, "cat-file", "-e", k.c.tag); err == nil {
			if raw, err := k.run.git(ctx, k.bare, "cat-file", "tag", k.c.tag); err == nil && strings.Contains(raw, "-----BEGIN ") {
				object, what = k.c.tag, "tag"
			}
		}
	}
	raw, err := k.run.git(ctx, k.bare, "cat-file", what, object)
	if err != nil {
		return err
	}
	if !strings.Contains(raw, "-----BEGIN ") {
		if !sig.RequireSigned && sig.PubKey == "" {
			return nil
		}
		return diag.Errorf(diag.Denied, "%s %s of %s is not signed", what, object, k.remote.arg)
	}
	env, config, err := k.keyring(ctx, strings.TrimSpace(sig.PubKey))
	if err != nil {
		return err
	}
	args := append(config, "verify-"+what, "--raw", object)
	cmd := *k.run
	cmd.env = append(append([]string(nil), k.run.env...), env...)
	status, err := cmd.status(ctx, k.bare, args)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	bad := err != nil
	for _, word := range []string{"BADSIG", "ERRSIG", "REVKEYSIG", "NO_PUBKEY"} {
		bad = bad || strings.Contains(status, "[GNUPG:] "+word)
	}
	expired := strings.Contains(status, "[GNUPG:] EXPKEYSIG") || strings.Contains(status, "[GNUPG:] EXPSIG")
	if expired && !sig.RejectExpired && strings.Contains(status, "[GNUPG:] VALIDSIG") {
		return nil
	}
	if bad || expired {
		return diag.Errorf(diag.Denied, "the signature of %s %s of %s is not valid for the given key", what, object, k.remote.arg)
	}
	return nil
}

// keyring makes the key the only one that is trusted.
func (k *checkout) keyring(ctx context.Context, key string) (env, config []string, err error) {
	if strings.HasPrefix(key, "-----BEGIN PGP") {
		gpg, err := exec.LookPath("gpg")
		if err != nil {
			return nil, nil, diag.Errorf(diag.Unsupported, "checking a PGP signature needs gpg, which is not installed on the builder")
		}
		home := filepath.Join(k.temp, "gpg")
		if err := os.Mkdir(home, 0o700); err != nil {
			return nil, nil, err
		}
		file := filepath.Join(k.temp, "key.asc")
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			return nil, nil, err
		}
		cmd := exec.CommandContext(ctx, gpg, "--homedir", home, "--batch", "--no-autostart", "--quiet", "--import", "--", file)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, nil, diag.Errorf(diag.Invalid, "the public key cannot be read: %s", strings.TrimSpace(string(out)))
		}
		return []string{"GNUPGHOME=" + home}, nil, nil
	}
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		return nil, nil, diag.Errorf(diag.Unsupported, "checking an ssh signature needs ssh-keygen, which is not installed on the builder")
	}
	file := filepath.Join(k.temp, "signers")
	var lines strings.Builder
	for line := range strings.Lines(key) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines.WriteString("* namespaces=\"git\" " + line + "\n")
		}
	}
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		return nil, nil, err
	}
	return nil, []string{"-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile=" + file}, nil
}

// status runs git and returns what it says on stderr, where --raw puts gpg's status lines.
func (r *gitRunner) status(ctx context.Context, dir string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, r.path, args...)
	cmd.Dir, cmd.Env = dir, r.env
	out := &capped{limit: 64 << 10}
	cmd.Stderr = out
	err := cmd.Run()
	return out.String(), err
}
