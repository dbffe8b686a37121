package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const upstream = "github.com/moby/buildkit"

// layout names the files of a work directory. It must not lie under /tmp, /run, /etc or /opt, which are private inside.
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}
func (l layout) bin(name string) string { return l.path("bin", name) }
func (l layout) testBinary(pkg string) string {
	return l.path("tests", strings.ReplaceAll(pkg, "/", "-")+".test")
}

// goCommand runs go in this module's folder and gives its output.
func goCommand(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// upstreamDir is where the module with the tests is on this machine.
func upstreamDir(ctx context.Context) (string, error) {
	if _, err := goCommand(ctx, nil, "mod", "download", upstream); err != nil {
		return "", err
	}
	return goCommand(ctx, nil, "list", "-m", "-f", "{{.Dir}}", upstream)
}

// buildPrograms compiles the clients, the reference, the applets and the frontend into bin, and links the registry and the
// programs that Debian has under other names beside them.
func buildPrograms(ctx context.Context, l layout) (tools, error) {
	static := []string{"CGO_ENABLED=0"}
	small := []string{"-trimpath", "-buildvcs=false", "-ldflags", "-s -w"}
	build := func(out, pkg string) error {
		args := append(append([]string{"build"}, small...), "-o", out, pkg)
		_, err := goCommand(ctx, static, args...)
		return err
	}
	t := tools{busybox: "/bin/busybox", applets: l.path("images", "applets"), frontend: l.path("images", "dockerfile-frontend")}
	for out, pkg := range map[string]string{
		l.bin("buildctl"):             upstream + "/cmd/buildctl",
		l.bin("silo"):                 "./s3",
		l.path("reference/buildkitd"): upstream + "/cmd/buildkitd",
		t.applets:                     "./applets",
		t.frontend:                    upstream + "/frontend/dockerfile/cmd/dockerfile-frontend",
	} {
		if err := build(out, pkg); err != nil {
			return t, err
		}
	}
	if err := relink("silo", l.bin("mc")); err != nil {
		return t, err
	}
	registry, err := exec.LookPath("docker-registry")
	if err != nil {
		return t, fmt.Errorf("%w (make conformance installs Debian's docker-registry)", err)
	}
	return t, relink(registry, l.bin("registry"))
}

func relink(target, name string) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, name)
}

// buildTests compiles the test packages of the changed module.
func buildTests(ctx context.Context, l layout, packages []string, modFile string) error {
	for _, pkg := range packages {
		_, err := goCommand(ctx, []string{"CGO_ENABLED=0"}, "test", "-c", "-modfile", modFile, "-o", l.testBinary(pkg), upstream+"/"+pkg)
		if err != nil {
			return err
		}
	}
	return nil
}

// sshSign signs what git names last with a user's key; the signature is put beside it.
const sshSign = `#!/bin/sh
for buffer; do :; done
exec ssh-keygen -Y sign -f "$(dirname "$0")/.ssh/%s.id_ed25519" -n git "$buffer" >/dev/null
`

// signFixtures makes the keys with which the tests sign, by upstream's own scripts.
func signFixtures(ctx context.Context, l layout, upstreamDir string) error {
	dir := l.path("sign")
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, script := range []string{"gen_gpg_test_env.sh", "gen_ssh_test_env.sh"} {
		for _, user := range []string{"user1", "user2"} {
			cmd := exec.CommandContext(ctx, "sh", filepath.Join(upstreamDir, "hack/fixtures", script), user)
			cmd.Env = append(os.Environ(), "BUILDKIT_TEST_SIGN_FIXTURES="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", script, err, out)
			}
		}
	}
	// Upstream's program for git's ssh signatures knows the calls of newer gits only: with others tags stay unsigned.
	for _, user := range []string{"user1", "user2"} {
		if err := os.WriteFile(filepath.Join(dir, user+".git_ssh_sign.sh"), fmt.Appendf(nil, sshSign, user), 0o755); err != nil {
			return err
		}
	}
	// The scripts leave an agent that serves the keys: the tests start their own.
	stop := exec.CommandContext(ctx, "gpgconf", "--homedir", filepath.Join(dir, "gnupg"), "--kill", "all")
	if out, err := stop.CombinedOutput(); err != nil {
		return fmt.Errorf("gpgconf: %w\n%s", err, out)
	}
	return os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644)
}
