package session_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

var _ session.Session = (*session.Local)(nil)

func newLocal(t *testing.T, opt session.LocalOptions) *session.Local {
	t.Helper()
	l, err := session.NewLocal(opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wantKind(t *testing.T, err error, k diag.Kind, words ...string) {
	t.Helper()
	if err == nil || diag.KindOf(err) != k {
		t.Fatalf("got error %v of kind %v, want %v", err, diag.KindOf(err), k)
	}
	var b strings.Builder
	diag.Render(&b, err)
	for _, w := range words {
		if !strings.Contains(b.String(), w) {
			t.Errorf("error %q lacks %q", b.String(), w)
		}
	}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	l := newLocal(t, session.LocalOptions{Dirs: map[string]session.Dir{"context": {Path: dir, Key: "k"}}})
	d, err := l.Dir(t.Context(), "context")
	if err != nil || d.Path != dir || d.Key != "k" {
		t.Fatalf("Dir = %+v, %v", d, err)
	}
	_, err = l.Dir(t.Context(), "contxt")
	wantKind(t, err, diag.NotFound, `"contxt"`, `did you mean "context"`)
	_, err = session.NewLocal(session.LocalOptions{Dirs: map[string]session.Dir{"x": {Path: filepath.Join(dir, "none")}}})
	wantKind(t, err, diag.NotFound, "none")
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = session.NewLocal(session.LocalOptions{Dirs: map[string]session.Dir{"x": {Path: file}}})
	wantKind(t, err, diag.Invalid, "not a directory")
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	file, big := filepath.Join(dir, "s"), filepath.Join(dir, "big")
	for name, n := range map[string]int{file: session.MaxSecret, big: session.MaxSecret + 1} {
		if err := os.WriteFile(name, bytes.Repeat([]byte("x"), n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TOKEN", "hunter2")
	l := newLocal(t, session.LocalOptions{Secrets: map[string]session.SecretSource{
		"file": {File: file}, "big": {File: big}, "env": {Env: "TOKEN"}, "TOKEN": {}, "unset": {Env: "NOT_SET_ANYWHERE"},
	}})
	for id, want := range map[string]int{"file": session.MaxSecret, "env": 7, "TOKEN": 7} {
		b, err := l.Secret(t.Context(), id)
		if err != nil || len(b) != want {
			t.Errorf("Secret(%q) has %d bytes, %v; want %d", id, len(b), err, want)
		}
	}
	_, err := l.Secret(t.Context(), "big")
	wantKind(t, err, diag.Exhausted, "500 KiB")
	_, err = l.Secret(t.Context(), "unset")
	wantKind(t, err, diag.NotFound, "NOT_SET_ANYWHERE")
	_, err = l.Secret(t.Context(), "fiel")
	wantKind(t, err, diag.NotFound, `did you mean "file"`)
	_, err = session.NewLocal(session.LocalOptions{Secrets: map[string]session.SecretSource{"a": {File: filepath.Join(dir, "no")}}})
	wantKind(t, err, diag.NotFound, `secret "a"`)
}

// A secret's file may be a pipe, which can be read only once; what a caller does to the bytes must not reach others.
func TestSecretReadOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLocal(t, session.LocalOptions{Secrets: map[string]session.SecretSource{"a": {File: file}}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b, err := l.Secret(t.Context(), "a")
			if err != nil || string(b) != "one" {
				t.Errorf("Secret = %q, %v", b, err)
				return
			}
			clear(b)
		})
	}
	wg.Wait()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Secret(t.Context(), "a"); err != nil || string(b) != "one" {
		t.Errorf("after removal: %q, %v", b, err)
	}
}

func writeKey(t *testing.T, passphrase string) (string, ssh.PublicKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return file, p
}

// useAgent lists, signs and tries to change the agent of id.
func useAgent(t *testing.T, l *session.Local, id string, pub ssh.PublicKey) {
	t.Helper()
	conn, err := l.SSH(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := agent.NewClient(conn)
	keys, err := a.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("List = %v, %v", keys, err)
	}
	sig, err := a.Sign(pub, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Verify([]byte("data"), sig); err != nil {
		t.Error(err)
	}
	if err := a.RemoveAll(); err == nil {
		t.Error("a build could remove the keys of its user's agent")
	}
	if err := a.Lock([]byte("x")); err == nil {
		t.Error("a build could lock its user's agent")
	}
}

func TestSSHKeyFiles(t *testing.T) {
	file, pub := writeKey(t, "")
	l := newLocal(t, session.LocalOptions{SSH: map[string][]string{"default": {file}}})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { useAgent(t, l, "", pub) })
	}
	wg.Wait()
	_, err := l.SSH(t.Context(), "github")
	wantKind(t, err, diag.NotFound, "github", "--ssh github")
	locked, _ := writeKey(t, "pass")
	_, err = session.NewLocal(session.LocalOptions{SSH: map[string][]string{"default": {locked}}})
	wantKind(t, err, diag.Denied, "passphrase", "ssh-add")
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = session.NewLocal(session.LocalOptions{SSH: map[string][]string{"default": {junk}}})
	wantKind(t, err, diag.Invalid, "neither a socket nor a private key")
}

func TestSSHSocket(t *testing.T) {
	file, pub := writeKey(t, "")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParseRawPrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c) }()
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", sock)
	l := newLocal(t, session.LocalOptions{SSH: map[string][]string{"default": nil, "other": {sock}}})
	useAgent(t, l, "default", pub)
	useAgent(t, l, "other", pub)
	if keys, err := ring.List(); err != nil || len(keys) != 1 {
		t.Errorf("the agent has keys %v, %v", keys, err)
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	_, err = session.NewLocal(session.LocalOptions{SSH: map[string][]string{"default": nil}})
	wantKind(t, err, diag.NotFound, "SSH_AUTH_SOCK")
}

// A connection must not outlive its build.
func TestSSHCancel(t *testing.T) {
	file, _ := writeKey(t, "")
	l := newLocal(t, session.LocalOptions{SSH: map[string][]string{"default": {file}}})
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := l.SSH(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("read from a connection whose build ended")
	}
}

func TestCredential(t *testing.T) {
	l := newLocal(t, session.LocalOptions{})
	if c, err := l.Credential(t.Context(), "example.com"); err != nil || c != (session.Credential{}) {
		t.Errorf("Credential = %v, %v", c, err)
	}
	l = newLocal(t, session.LocalOptions{Credential: func(_ context.Context, host string) (session.Credential, error) {
		if host == "bad.example" {
			return session.Credential{}, errors.New("no helper")
		}
		return session.Credential{Username: "u", Password: host}, nil
	}})
	if c, err := l.Credential(t.Context(), "example.com"); err != nil || c.Password != "example.com" {
		t.Errorf("Credential = %v, %v", c, err)
	}
	if _, err := l.Credential(t.Context(), "bad.example"); err == nil {
		t.Error("the error was lost")
	}
}

func TestOutput(t *testing.T) {
	dir := t.TempDir()
	var stream bytes.Buffer
	l := newLocal(t, session.LocalOptions{Outputs: map[string]session.OutputTarget{
		"0": {Dir: filepath.Join(dir, "a", "b")}, "1": {File: filepath.Join(dir, "f.tar")}, "2": {Stream: &stream},
		"3": {File: filepath.Join(dir, "none", "f.tar")},
	}})
	o, err := l.Output(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(o.Dir); err != nil || !st.IsDir() {
		t.Errorf("the directory was not made: %v", err)
	}
	for _, id := range []string{"1", "2"} {
		o, err := l.Output(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.File.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if err := o.File.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f.tar")); err != nil || string(b) != "data" {
		t.Errorf("file holds %q, %v", b, err)
	}
	if stream.String() != "data" {
		t.Errorf("stream got %q", stream.String())
	}
	_, err = l.Output(t.Context(), "3")
	wantKind(t, err, diag.NotFound, "output file")
	_, err = l.Output(t.Context(), "9")
	wantKind(t, err, diag.NotFound)
}
