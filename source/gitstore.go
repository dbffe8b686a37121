package source

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Repository is what is kept of a remote: the commits that were fetched, so that later ones need less.
type Repository struct {
	ID     string
	Remote string // without logins; "" if it was not noted
	Size   int64  // bytes
	Used   time.Time
	InUse  bool
}

// Repositories lists what is kept of remotes, least recently used first.
func (p *Puller) Repositories() ([]Repository, error) {
	entries, err := os.ReadDir(p.gitDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []Repository
	for _, e := range entries {
		dir := filepath.Join(p.gitDir(), e.Name())
		info, serr := os.Stat(dir)
		if serr != nil || !info.IsDir() {
			continue // removed meanwhile
		}
		r := Repository{ID: e.Name(), Used: info.ModTime()}
		if remote, err := os.ReadFile(filepath.Join(dir, "description")); err == nil {
			r.Remote = strings.TrimSpace(string(remote))
		}
		if r.Size, _, serr = measure(dir); serr != nil && !errors.Is(serr, fs.ErrNotExist) {
			return nil, serr
		}
		release, free := p.locks.try("repository " + r.ID)
		if r.InUse = !free; free {
			release()
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Repository) int { return cmp.Or(a.Used.Compare(b.Used), strings.Compare(a.ID, b.ID)) })
	return out, err
}

// RemoveRepository removes what is kept of a remote, and reports false if it is in use.
func (p *Puller) RemoveRepository(r Repository) (bool, error) {
	release, free := p.locks.try("repository " + r.ID)
	if !free {
		return false, nil
	}
	defer release()
	dir := filepath.Join(p.gitDir(), r.ID)
	// Without its HEAD it is none, even if this is interrupted.
	if err := os.Remove(filepath.Join(dir, "HEAD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.RemoveAll(dir)
}

// Distrust removes all that is kept of remotes, in use or not, in the background: the disk may have damaged it.
func (p *Puller) Distrust() {
	entries, err := os.ReadDir(p.gitDir())
	if err != nil {
		return // there is nothing
	}
	for _, e := range entries {
		go func() {
			release, err := p.locks.take(context.Background(), "repository "+e.Name())
			if err != nil {
				return
			}
			defer release()
			_ = os.Remove(filepath.Join(p.gitDir(), e.Name(), "HEAD")) // without it the rest is not a repository
			_ = os.RemoveAll(filepath.Join(p.gitDir(), e.Name()))
		}()
	}
}

// share is the part of the store's cap that repositories may have.
const share = 10

// trimRepositories removes those that were not used for longest until the rest is within limit bytes.
func (p *Puller) trimRepositories(ctx context.Context, limit int64) error {
	all, err := p.Repositories()
	if err != nil {
		return err
	}
	var total int64
	for _, r := range all {
		total += r.Size
	}
	for _, r := range all {
		if total <= limit || ctx.Err() != nil {
			break
		}
		gone, err := p.RemoveRepository(r)
		if err != nil {
			return err
		}
		if gone {
			total -= r.Size
		}
	}
	return nil
}
