package source

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// verify checks the detached signature that a download must have. gpg does the work, with the key of the build as the only one
// that it knows.
func (h *HTTP) verify(ctx context.Context, op *graph.HTTP, d *download) error {
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		return diag.Errorf(diag.Unsupported, "checking the signature of %s needs gpg, which is not installed on the builder", redacted(op.URL))
	}
	temp, cleanup, err := h.env.Store.TempDir("verify")
	if err != nil {
		return err
	}
	defer cleanup()
	home := filepath.Join(temp, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	key, sig := filepath.Join(temp, "key.asc"), filepath.Join(temp, "sig.asc")
	for name, text := range map[string]string{key: op.Signature.PubKey, sig: op.Signature.Signature} {
		if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	run := func(in io.Reader, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, gpg, append([]string{"--homedir", home, "--batch", "--no-autostart", "--quiet", "--trust-model", "always", "--status-fd", "1"}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C"}
		out := &capped{limit: 64 << 10}
		cmd.Stdin, cmd.Stdout = in, out
		err := cmd.Run()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), err
	}
	if _, err := run(nil, "--import", "--", key); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return diag.Errorf(diag.Invalid, "the public key for %s cannot be read", redacted(op.URL))
	}
	data, err := stored(ctx, h.env.Store, d.Digest)
	if err != nil {
		return err
	}
	defer data.Close()
	status, err := run(data, "--verify", "--", sig, "-")
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// An expired key is no reason to refuse, as in BuildKit; its signature counts all the same.
	if !strings.Contains(status, "[GNUPG:] VALIDSIG ") || strings.Contains(status, "[GNUPG:] REVKEYSIG") || err != nil && !strings.Contains(status, "[GNUPG:] EXPKEYSIG") {
		return diag.Errorf(diag.Denied, "%s does not have a valid signature of the given key", redacted(op.URL))
	}
	return nil
}
