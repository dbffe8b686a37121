package signature

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/strata-build/strata/diag"
)

// at makes keys and signatures of a time.
func at(when time.Time, life time.Duration) *packet.Config {
	return &packet.Config{Time: func() time.Time { return when }, KeyLifetimeSecs: uint32(life.Seconds())}
}

func entity(t *testing.T, c *packet.Config) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("x", "", "x@example.com", c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func public(t *testing.T, e *openpgp.Entity) string {
	t.Helper()
	var b strings.Builder
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = errors.Join(e.Serialize(w), w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sign(t *testing.T, e *openpgp.Entity, data string, c *packet.Config) string {
	t.Helper()
	var b strings.Builder
	if err := openpgp.ArmoredDetachSign(&b, e, strings.NewReader(data), c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func refused(t *testing.T, err error, text string) {
	t.Helper()
	if k := diag.KindOf(err); err == nil || k != diag.Denied && k != diag.Invalid || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %q", err, text)
	}
}

func TestDetached(t *testing.T) {
	past := at(time.Now().Add(-48*time.Hour), time.Hour)
	good, other, expired := entity(t, nil), entity(t, nil), entity(t, past)
	check := func(data, sig, keys string, o Options) error { return Detached(strings.NewReader(data), sig, keys, o) }
	sig := sign(t, good, "data", nil)
	for _, keys := range []string{public(t, good), public(t, other) + "\n" + public(t, good)} {
		if err := check("data", sig, keys, Options{RejectExpired: true}); err != nil {
			t.Error(err)
		}
	}
	old := sign(t, expired, "data", past)
	if err := check("data", old, public(t, expired), Options{}); err != nil {
		t.Error(err)
	}
	refused(t, check("data", old, public(t, expired), Options{RejectExpired: true}), "expired")
	refused(t, check("data2", sig, public(t, good), Options{}), "not valid")
	refused(t, check("data", sig, public(t, other), Options{}), "not valid")
	refused(t, check("data", sig, "", Options{}), "failed to read armored public key")
	refused(t, check("data", sig, "ssh-ed25519 AAAA", Options{}), "failed to read armored public key")
	refused(t, check("data", sig, sig, Options{}), "failed to read armored public key")
	refused(t, check("data", "", public(t, good), Options{}), "failed to decode")
	later := at(time.Now().Add(time.Hour), 0)
	refused(t, check("data", sign(t, good, "data", later), public(t, good), Options{}), "future")
	// A key that was revoked later is no good for what it signed before.
	if err := good.RevokeKey(packet.KeyCompromised, "stolen", nil); err != nil {
		t.Fatal(err)
	}
	refused(t, check("data", sig, public(t, good), Options{}), "revoked")
}

const commit = "tree 1\nparent 2\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n"

// signedCommit is the commit with a signature over it.
func signedCommit(sig, message string) string {
	return commit + "gpgsig " + strings.ReplaceAll(strings.TrimSuffix(sig, "\n"), "\n", "\n ") + "\n" + "\n" + message
}

func TestObject(t *testing.T) {
	e, other := entity(t, nil), entity(t, nil)
	msg := "subject\n\n gpgsig is only a header\n"
	good := signedCommit(sign(t, e, commit+"\n"+msg, nil), msg)
	if err := Object([]byte(good), public(t, e), Options{}); err != nil {
		t.Error(err)
	}
	refused(t, Object([]byte(strings.Replace(good, "parent 2", "parent 3", 1)), public(t, e), Options{}), "not valid")
	refused(t, Object([]byte(good), public(t, other), Options{}), "not valid")
	refused(t, Object([]byte(commit+"\n"+msg), public(t, e), Options{}), "git object is not signed")
	tag := "object 1\ntype commit\ntag v1\ntagger a <a@b> 1 +0000\n\nmessage\n"
	signedTag := tag + sign(t, e, tag, nil)
	if err := Object([]byte(signedTag), public(t, e), Options{}); err != nil {
		t.Error(err)
	}
	refused(t, Object([]byte(strings.Replace(signedTag, "v1", "v2", 1)), public(t, e), Options{}), "not valid")
	refused(t, Object([]byte(tag), public(t, e), Options{}), "git object is not signed")
}

func TestObjectSSH(t *testing.T) {
	key := func() (ssh.Signer, string) {
		pub, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(private)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ssh.NewPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return s, string(ssh.MarshalAuthorizedKey(p))
	}
	s, line := key()
	_, foreign := key()
	signed := func(namespace string) []byte {
		sig, err := sshsig.Sign(strings.NewReader(commit+"\nm\n"), s, sshsig.HashSHA512, namespace)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(signedCommit(string(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: sig.Marshal()})), "m\n"))
	}
	if err := Object(signed("git"), line, Options{}); err != nil {
		t.Error(err)
	}
	refused(t, Object(signed("git"), foreign, Options{}), "failed to verify ssh signature")
	refused(t, Object(signed("file"), line, Options{}), "not for git")
	refused(t, Object(signed("git"), "-----BEGIN PGP", Options{}), "failed to parse ssh public key")
	refused(t, Object([]byte(strings.Replace(string(signed("git")), "\n\nm", "\n\nn", 1)), line, Options{}), "failed to verify ssh signature")
}
