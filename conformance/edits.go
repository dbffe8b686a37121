package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Environment of the changed tests: where the reference's bytes are kept, and whether they are being learned now.
const (
	envGoldens = "CONFORMANCE_GOLDENS"
	envLearn   = "CONFORMANCE_LEARN"
)

// edit is a change of one text of an upstream test file. It must occur there.
type edit struct{ from, to string }

// learned is added to the Dockerfile tests: the digest that the reference made of a case.
const learned = `

// referenceDigest gives the digest that the reference made in a case; while learning it keeps the one at hand.
func referenceDigest(t *testing.T, name, actual string) string {
	t.Helper()
	file := filepath.Join(os.Getenv("` + envGoldens + `"), "repro-"+name)
	if os.Getenv("` + envLearn + `") != "" {
		require.NoError(t, os.WriteFile(file, []byte(actual), 0o644))
	}
	dt, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(dt)
}
`

// edits are all changes of upstream's tests. The tests name digests of public images and pages, and of what comes of
// them; stand-ins have others. Where upstream expects certain bytes of an export, the bytes that the reference makes of the
// same images are expected instead.
func edits(s *standIns) map[string][]edit {
	page := sha256.Sum256([]byte(buildREADME))
	return map[string][]edit{
		"client/policy_test.go": {
			{"sha256:3614ca5eacf0a3a1bcc361c939202a974b4902b9334ff36eb29ffe9011aaad83", s.images["library/busybox:1.34.1-uclibc"].desc.Digest},
			{"sha256:6e4b94fc270e708e1068be28bd3551dc6917a4fc5a61293d51bb36e6b75c4b53", "sha256:" + hex.EncodeToString(page[:])},
		},
		"client/compatibility_test.go": {
			{"compatibilityGoldens.ReadFile(commonPath)", `os.ReadFile(filepath.Join(os.Getenv("` + envGoldens + `"), commonPath))`},
			{
				"compatibilityGoldens.ReadFile(goldenPath(exporterType, caseName, version, file))",
				`os.ReadFile(filepath.Join(os.Getenv("` + envGoldens + `"), goldenPath(exporterType, caseName, version, file)))`,
			},
			{"baseDir := filepath.Dir(currentFile)", `baseDir, _ := os.Getenv("` + envGoldens + `"), currentFile`},
		},
		"frontend/dockerfile/dockerfile_source_date_epoch_test.go": {
			{
				"sha256:8740c948ffd4c816ea7ca963f99ca52f4788baa23f228da9581a9ea2edd3fcd7",
				s.images["amd64/debian:bullseye-20230109-slim"].layer[0].Digest,
			},
			{
				"require.Equal(t, tc.expectedDigest, desc.Digest.String())",
				"require.Equal(t, referenceDigest(t, tc.name, desc.Digest.String()), desc.Digest.String())",
			},
			{"\ntype tarContextFile struct", learned + "\ntype tarContextFile struct"},
		},
	}
}

// changedUpstream makes a copy of upstream's module with the edits in the work directory, since files in Go's module cache
// cannot be replaced, and gives the go.mod that builds with it.
func changedUpstream(l layout, moduleDir string, all map[string][]edit) (dir, modFile string, err error) {
	dir, modFile = l.path("src", filepath.Base(moduleDir)), l.path("src", "go.mod")
	complete := filepath.Join(dir, ".complete")
	if _, err := os.Stat(complete); err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return "", "", err
		}
		if err := copyTree(dir, moduleDir); err != nil {
			return "", "", err
		}
		if err := os.WriteFile(complete, nil, 0o644); err != nil {
			return "", "", err
		}
	}
	for name, list := range all {
		b, err := os.ReadFile(filepath.Join(moduleDir, name))
		if err != nil {
			return "", "", err
		}
		text := string(b)
		for _, e := range list {
			if !strings.Contains(text, e.from) {
				return "", "", fmt.Errorf("%s of %s has no %q any more: upstream has changed it", name, upstream, e.from)
			}
			text = strings.ReplaceAll(text, e.from, e.to)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", "", err
		}
	}
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return "", "", fmt.Errorf("%w (run this in the conformance folder)", err)
	}
	mod = fmt.Appendf(mod, "\nreplace %s => %s\n", upstream, dir)
	if err := os.WriteFile(modFile, mod, 0o644); err != nil {
		return "", "", err
	}
	return dir, modFile, copyFile(l.path("src", "go.sum"), "go.sum")
}

// copyTree copies a module's files, writable.
func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dst, rel), 0o755)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dst, rel), b, 0o644)
	})
}
