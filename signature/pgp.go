package signature

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/strata-build/strata/diag"
)

// Options say how strict a check is.
type Options struct {
	RejectExpired bool // a key that has expired since it signed is no good
}

// skew is how far the clock of a signer may be ahead.
const skew = 5 * time.Minute

// Detached checks an armored detached OpenPGP signature of data. keys are armored public keys, several blocks if need be.
func Detached(data io.Reader, sig, keys string, opt Options) error {
	block, err := armor.Decode(strings.NewReader(sig))
	if err != nil {
		return diag.Errorf(diag.Denied, "failed to decode armored signature: %w", err)
	}
	raw, err := io.ReadAll(block.Body)
	if err != nil {
		return diag.Errorf(diag.Denied, "failed to read armored signature: %w", err)
	}
	first, err := firstSignature(raw)
	if err != nil {
		return err
	}
	ring, err := keyRing(keys)
	if err != nil {
		return err
	}
	if err := strongEnough(first); err != nil {
		return err
	}
	config := &packet.Config{}
	if !opt.RejectExpired { // the key must have been good when it signed
		config.Time = func() time.Time { return first.CreationTime }
	}
	signer, err := openpgp.CheckDetachedSignature(ring, data, bytes.NewReader(raw), config)
	if err != nil {
		return diag.Errorf(diag.Denied, "the signature is not valid for the given key: %w", err)
	}
	if first.CreationTime.After(time.Now().Add(skew)) {
		return diag.Errorf(diag.Denied, "the signature was made in the future: %s", first.CreationTime.Format(time.RFC3339))
	}
	return usable(signer, first.IssuerKeyId)
}

func firstSignature(raw []byte) (*packet.Signature, error) {
	for r := packet.NewReader(bytes.NewReader(raw)); ; {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, diag.Errorf(diag.Denied, "no signature packet found")
		}
		if err != nil {
			return nil, diag.Errorf(diag.Denied, "failed to read the signature: %w", err)
		}
		if sig, ok := p.(*packet.Signature); ok {
			return sig, nil
		}
	}
}

// keyRing reads all armored blocks.
func keyRing(keys string) (openpgp.EntityList, error) {
	var ring openpgp.EntityList
	for r := strings.NewReader(keys); ; {
		block, err := armor.Decode(r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "failed to read armored public key: %w", err)
		}
		if block.Type != openpgp.PublicKeyType {
			return nil, diag.Errorf(diag.Invalid, "failed to read armored public key: the block is a %s", block.Type)
		}
		more, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "failed to read armored public key: %w", err)
		}
		ring = append(ring, more...)
	}
	if len(ring) == 0 {
		return nil, diag.Errorf(diag.Invalid, "failed to read armored public key: there is none")
	}
	return ring, nil
}

// strongEnough refuses what can be forged.
func strongEnough(s *packet.Signature) error {
	switch s.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return diag.Errorf(diag.Denied, "a signature over %s is too weak", s.Hash)
	}
	switch s.PubKeyAlgo {
	case packet.PubKeyAlgoEdDSA, packet.PubKeyAlgoEd25519, packet.PubKeyAlgoEd448, packet.PubKeyAlgoECDSA, packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		return nil
	}
	return diag.Errorf(diag.Denied, "signatures of the algorithm %d are not accepted", s.PubKeyAlgo)
}

// usable refuses revoked and short keys. The library checks revocations as of the time of the signature; a key that was
// revoked later is no good either, since a thief can date a signature as he likes.
func usable(e *openpgp.Entity, id *uint64) error {
	for _, sub := range e.Subkeys {
		if id != nil && sub.PublicKey.KeyId == *id && len(sub.Revocations) > 0 {
			return diag.Errorf(diag.Denied, "the key was revoked: %s", sub.Revocations[0].RevocationReasonText)
		}
	}
	for _, r := range e.Revocations {
		if e.PrimaryKey.VerifyRevocationSignature(r) == nil {
			return diag.Errorf(diag.Denied, "the key was revoked: %s", r.RevocationReasonText)
		}
	}
	if k, ok := e.PrimaryKey.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		return diag.Errorf(diag.Denied, "an RSA key of %d bits is too short", k.N.BitLen())
	}
	return nil
}
