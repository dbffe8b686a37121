package source

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// What is in the store came there for some client. Another one gets it only if it could get it without the store. Two kinds of
// facts say so, each a memo:
//
//   - A place has sent a blob. Who may read the place may have the blob from the store. A place that only names the blob's
//     digest, such as a registry of an attacker, has to send it first.
//   - A login could read a manifest, blob or file at a place. Without the fact, the place is asked with the client's own login.
//
// The engine's own user can read the state root, and is asked for neither.

// sentFact names the memo that a place has sent a blob.
func sentFact(place string, d graph.Digest) graph.Digest {
	return digest.FromString("sent\x00" + place + "\x00" + d.String())
}

// partFact names the memo that a place has sent the beginning of a blob.
func partFact(place string, d graph.Digest) graph.Digest {
	return digest.FromString("sent in part\x00" + place + "\x00" + d.String())
}

// readFact names the memo that a login can read something at a place.
func readFact(c session.Client, login, place, what string) graph.Digest {
	return digest.FromString(strings.Join([]string{"readable", c.Tenant, login, place, what}, "\x00"))
}

// repository is the place of a registry's repository.
func repository(ref registry.Ref) string { return "repository " + ref.Name() }

// clientPlace is the place of what a client sends itself.
func clientPlace(c session.Client) string { return "client " + c.Tenant + "\x00" + c.Name }

// knows reports whether a fact is noted.
func (e *Env) knows(fact graph.Digest) bool {
	_, err := e.Store.Memo(fact)
	return err == nil
}

// learn notes facts.
func (e *Env) learn(ctx context.Context, facts ...graph.Digest) error {
	return e.Store.Update(ctx, func(b *store.Batch) error {
		for _, f := range facts {
			b.Memo(f, f)
		}
		return nil
	})
}

// sent reports whether a blob of the store may stand for the one that a place has.
func (e *Env) sent(place string, d graph.Digest) bool {
	return e.Client.Owner || place == "" || e.knows(sentFact(place, d))
}

// anonymous is the login of who has none.
const anonymous = "anonymous"

// login names the client's login at a registry; "" if it changes each time. A name does not tell the password to who can read the
// state without the key of names.
func (im *Images) login(ctx context.Context, ref registry.Ref) (string, error) {
	c, err := im.env.Registry.Login(ctx, ref)
	switch {
	case err != nil || c.Tokens != nil:
		return "", err
	case c == session.Credential{}:
		return anonymous, nil
	}
	raw, err := json.Marshal(c)
	return im.names.named(ref.Host + "\x00" + string(raw)), err
}

// namer names secrets in facts.
type namer func() []byte

func newNamer(s *store.Store) namer {
	return sync.OnceValue(func() []byte { return nameKey(s.Root()) })
}

func (n namer) named(secret string) string {
	h := hmac.New(sha256.New, n())
	h.Write([]byte(secret))
	return hex.EncodeToString(h.Sum(nil))
}

// nameKey reads the key of names, or makes it. Without one on the disk, facts end with the process.
func nameKey(root string) []byte {
	path := filepath.Join(root, "names.key")
	if key, err := os.ReadFile(path); err == nil && len(key) == sha256.Size {
		return key
	}
	key := make([]byte, sha256.Size)
	rand.Read(key) // it never fails
	tmp := path + ".new"
	if os.WriteFile(tmp, key, 0o600) != nil || os.Rename(tmp, path) != nil {
		_ = os.Remove(tmp)
	}
	return key
}

// mayRead asks a repository for a manifest or blob with the client's own login, unless that, or anybody, could read it before.
func (im *Images) mayRead(ctx context.Context, ref registry.Ref, d graph.Digest, ask func() error) error {
	if im.env.Client.Owner {
		return nil
	}
	place := repository(ref)
	fact := func(login string) graph.Digest { return readFact(im.env.Client, login, place, d.String()) }
	if im.env.knows(fact(anonymous)) {
		return nil
	}
	if im.env.Registry == nil {
		return diag.Errorf(diag.Denied, "%s: there is no registry to ask whether this client may have it", ref)
	}
	login, err := im.login(ctx, ref)
	if err != nil {
		return err
	}
	if login != "" && im.env.knows(fact(login)) {
		return nil
	}
	if err := ask(); err != nil || login == "" {
		return err
	}
	return im.env.learn(ctx, fact(login))
}

// prove reads a blob that the store has from a place that has not sent it yet.
func (im *Images) prove(ctx context.Context, from provider, d image.Descriptor) error {
	if im.env.sent(from.place(), d.Digest) {
		return nil
	}
	err := registry.Again(ctx, func() error {
		r, err := from.open(ctx, d, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		sum := d.Digest.Algorithm().Digester()
		if _, err := io.Copy(sum.Hash(), r); err != nil {
			return err
		}
		if got := sum.Digest(); got != d.Digest {
			return registry.Blame(r, d.Digest, got)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return im.env.learn(ctx, sentFact(from.place(), d.Digest))
}

// Proven reports whether the store's layer of an image's diff_id may stand for the image's own.
func (im *Images) Proven(img *Image, i int) bool {
	return im.env.Client.Owner || img.from != nil && im.env.sent(img.from.place(), img.Blobs[i].Digest)
}

// proveLayers makes sure of what a configuration says of layers that the store has: only then may its diff_ids be a key, under
// which there is what others have built.
func (im *Images) proveLayers(ctx context.Context, img *Image, limit int) error {
	if im.env.Client.Owner || img.layers != nil || len(img.Blobs) == 0 {
		return nil
	}
	top := img.Pin(limit)
	if _, err := im.env.Hold.Chain(top); err != nil {
		return nil // nothing can be there that is stacked on it
	}
	u := &unpacking{im: im, img: img}
	known := true
	chains := img.ChainIDs()
	for i := 0; known && i < len(chains) && (limit <= 0 || i < limit); i++ {
		id, err := im.env.Hold.Chain(chains[i])
		known = err == nil && u.proven(i, id) && im.Proven(img, i)
	}
	if known {
		return nil
	}
	_, err := im.Layers(ctx, img, limit, "")
	return err
}

// resumable throws away the beginning of a blob that another place has sent: the end alone proves nothing.
func (im *Images) resumable(ctx context.Context, w *store.BlobWriter, from provider, d graph.Digest) error {
	if im.env.Client.Owner || from.place() == "" {
		return nil
	}
	fact := partFact(from.place(), d)
	if im.env.knows(fact) {
		return nil
	}
	if err := w.Restart(); err != nil {
		return err
	}
	return im.env.learn(ctx, fact)
}
