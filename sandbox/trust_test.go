package sandbox

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// authority makes a certificate in PEM.
func authority(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// A step that writes the bundle anew, in another form, keeps the proxy's certificate in the image: whoever has its key
// answers for every host then.
func TestProxyCALeftBehind(t *testing.T) {
	ours, theirs := authority(t), string(authority(t))
	block, _ := pem.Decode(ours)
	long := "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(block.Bytes) + "\n-----END CERTIFICATE-----\n"
	for name, change := range map[string]func(string) string{
		"as it was":      func(s string) string { return s },
		"no marks":       func(string) string { return theirs + string(ours) },
		"lines of DOS":   func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"one long line":  func(string) string { return theirs + long },
		"twice":          func(s string) string { return string(ours) + s + long },
		"a false begin":  func(s string) string { return "-----BEGIN nothing\n" + s },
		"cut off before": func(s string) string { return "-----BEGIN CERTIFICATE-----\nMIIB\n" + s },
	} {
		root := t.TempDir()
		file := filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(theirs), 0o644); err != nil {
			t.Fatal(err)
		}
		undo, err := trust(root, ours)
		if err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(now, ours) {
			t.Fatalf("%s: %q %v", name, now, err)
		}
		if err := os.WriteFile(file, []byte(change(string(now))), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := undo(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadFile(file)
		if err != nil || len(certificates(left, block.Bytes)) > 0 || !bytes.Contains(bytes.ReplaceAll(left, []byte("\r"), nil), []byte(theirs)) {
			t.Errorf("%s: %q %v", name, left, err)
		}
	}
}

// certificates returns the blocks of data that hold a certificate.
func certificates(data, der []byte) (out []*pem.Block) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return out
		}
		if data = rest; bytes.Equal(block.Bytes, der) {
			out = append(out, block)
		}
	}
}

// What a step puts in the bundle's place is neither followed nor waited for, and what it stands for is not changed.
func TestProxyCARedirected(t *testing.T) {
	ours := authority(t)
	outside := filepath.Join(t.TempDir(), "ca-certificates.crt")
	for name, change := range map[string]func(dir, file string) error{
		"link out":           func(_, file string) error { return os.Symlink(outside, file) },
		"link in":            func(_, file string) error { return os.Symlink("../other", file) },
		"FIFO":               func(_, file string) error { return unix.Mkfifo(file, 0o666) },
		"directory":          func(_, file string) error { return os.Mkdir(file, 0o755) },
		"directory link out": func(dir, _ string) error { return os.Rename(dir, dir+"2") },
		"removed":            func(_, _ string) error { return nil },
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "etc/ssl/certs")
		file := filepath.Join(dir, "ca-certificates.crt")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		canary := string(ours) + "canary"
		for _, f := range []string{file, outside, filepath.Join(root, "etc/ssl/other")} {
			if err := os.WriteFile(f, []byte(canary), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		undo, err := trust(root, ours)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := change(dir, file); err != nil {
			t.Fatal(err)
		}
		if name == "directory link out" {
			if err := os.Symlink(filepath.Dir(outside), dir); err != nil {
				t.Fatal(err)
			}
		}
		if err := undo(); (err == nil) != (name == "removed") {
			t.Errorf("%s: %v", name, err)
		}
		for _, f := range []string{outside, filepath.Join(root, "etc/ssl/other")} {
			if data, err := os.ReadFile(f); string(data) != canary {
				t.Errorf("%s: %s is %q %v", name, f, data, err)
			}
		}
	}
}

func FuzzWithoutCert(f *testing.F) {
	ours := authority(f)
	f.Add("x" + string(ours) + "y")
	f.Add("-----BEGIN CERTIFICATE-----\n-----BEGIN X-----\n-----END X-----\n")
	block, _ := pem.Decode(ours)
	f.Fuzz(func(t *testing.T, text string) {
		left := withoutCert(text, ours)
		if len(left) > len(text) || !strings.Contains(text, string(ours)) && len(certificates([]byte(text), block.Bytes)) == 0 && left != text && !strings.Contains(text, "-----BEGIN ") {
			t.Errorf("%q became %q", text, left)
		}
		if both := withoutCert(string(ours)+left, ours); both != left {
			t.Errorf("%q became %q", string(ours)+left, both)
		}
	})
}
