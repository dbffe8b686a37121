// Package signature checks who made something: detached OpenPGP signatures of files, and the signatures that git keeps in its
// commits and tags (OpenPGP or ssh).
//
// It knows nothing of where the bytes come from. A check passes if one of the given keys made the signature; there is no web of
// trust and no key server. An error says what was wrong, in words that BuildKit's clients know.
//
//	err := signature.Detached(file, armoredSignature, armoredKeys, signature.Options{})
//	err = signature.Object(rawCommit, sshPublicKey, signature.Options{RejectExpired: true})
package signature
