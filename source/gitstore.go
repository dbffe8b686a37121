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
	Tenant string // whose builds use it
	Size   int64  // bytes
	Used   time.Time
	InUse  bool

	dir string
}

// repositoryDirs returns the directories of the repositories of all tenants.
func (p *Puller) repositoryDirs() ([]string, error) {
	parents := []string{p.store.Root()}
	tenants := filepath.Join(p.store.Root(), "tenants")
	entries, err := os.ReadDir(tenants)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		parents = append(parents, filepath.Join(tenants, e.Name()))
	}
	var all []string
	for _, parent := range parents {
		dir := filepath.Join(parent, "git")
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all, nil
}

// Repositories lists what is kept of remotes, least recently used first.
func (p *Puller) Repositories() ([]Repository, error) {
	dirs, err := p.repositoryDirs()
	var out []Repository
	for _, dir := range dirs {
		info, serr := os.Stat(dir)
		if serr != nil || !info.IsDir() {
			continue // removed meanwhile
		}
		r := Repository{ID: filepath.Base(dir), Used: info.ModTime(), dir: dir}
		if text, err := os.ReadFile(filepath.Join(dir, "description")); err == nil {
			remote, tenant, _ := strings.Cut(string(text), "\n")
			r.Remote, r.Tenant = remote, strings.TrimSpace(tenant)
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
	// Without its HEAD it is none, even if this is interrupted.
	if err := os.Remove(filepath.Join(r.dir, "HEAD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.RemoveAll(r.dir)
}

// Distrust removes all that is kept of remotes, in use or not, in the background: the disk may have damaged it.
func (p *Puller) Distrust() {
	dirs, err := p.repositoryDirs()
	if err != nil {
		return // there is nothing
	}
	for _, dir := range dirs {
		go func() {
			release, err := p.locks.take(context.Background(), "repository "+filepath.Base(dir))
			if err != nil {
				return
			}
			defer release()
			_ = os.Remove(filepath.Join(dir, "HEAD")) // without it the rest is not a repository
			_ = os.RemoveAll(dir)
		}()
	}
}

// share is the part of its space that a tenant's repositories may have.
const share = 10

// TrimRepositories removes those of a tenant's repositories that were not used for longest, until the rest is within its share of
// the tenant's space, in bytes.
func (p *Puller) TrimRepositories(ctx context.Context, tenant string, space int64) error {
	limit := space / share
	all, err := p.Repositories()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(r Repository) bool { return r.Tenant != tenant })
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
