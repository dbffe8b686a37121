package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
)

// Prune removes what a policy lets go.
func (e *Engine) Prune(ctx context.Context, p PrunePolicy) (*PruneReport, error) {
	keep, err := filter(p.Filters)
	if err != nil {
		return nil, err
	}
	if p.Match != nil {
		all := keep
		keep = func(u store.Usage) bool { return (all == nil || all(u)) && p.Match(usageItem(u)) }
	}
	freed, err := e.store.GC(ctx, store.Policy{
		MaxBytes: p.KeepBytes, KeepDuration: p.Until, All: p.KeepBytes == 0, Unneeded: !p.All,
		Mounts: p.Mounts || slices.Contains(p.Filters, "type=mount"), Filter: keep, DryRun: p.DryRun,
	})
	if err != nil {
		return nil, err
	}
	r := pruneReport(freed)
	git, err := e.pruneGit(ctx, p, keep)
	r.Removed = append(r.Removed, git...)
	return r, err
}

// PruneImages removes images that nobody has named, or whose name went to another image. Layers that cached results have too stay.
func (e *Engine) PruneImages(ctx context.Context, until time.Duration, dryRun bool) (*PruneReport, error) {
	freed, err := e.store.GC(ctx, store.Policy{All: true, KeepDuration: until, DryRun: dryRun, Filter: func(u store.Usage) bool {
		return u.Kind == store.UsageImage && graph.Digest(u.ID).Validate() == nil
	}})
	if err != nil {
		return nil, err
	}
	return pruneReport(freed), nil
}

func pruneReport(freed store.Freed) *PruneReport {
	r := &PruneReport{}
	for _, it := range freed.Items {
		r.Removed = append(r.Removed, Pruned{ID: it.ID, Label: it.Kind + " " + it.Label, Reason: it.Why, Size: it.Size})
	}
	at := map[string]int{}
	for _, it := range freed.Kept {
		i, ok := at[it.Why]
		if !ok {
			i = len(r.Kept)
			at[it.Why] = i
			r.Kept = append(r.Kept, Retained{Reason: it.Why})
		}
		r.Kept[i].Count++
		r.Kept[i].Size += it.Size
	}
	slices.SortStableFunc(r.Kept, func(a, b Retained) int { return cmp.Compare(b.Size, a.Size) })
	return r
}

// pruneGit removes what is kept of git repositories, after the store's own: it is fetched again when it is needed.
func (e *Engine) pruneGit(ctx context.Context, p PrunePolicy, want func(store.Usage) bool) ([]Pruned, error) {
	repos, err := e.puller.Repositories()
	if err != nil || len(repos) == 0 {
		return nil, err
	}
	over := int64(math.MaxInt64) // what has to go
	if p.KeepBytes > 0 {
		all, err := e.Usage(ctx)
		if err != nil {
			return nil, err
		}
		over = -p.KeepBytes
		for _, u := range all {
			over += u.Size
		}
	}
	var out []Pruned
	for _, r := range repos {
		u := gitUsage(r)
		if over <= 0 || r.InUse || time.Since(r.Used) < p.Until || want != nil && !want(u) {
			continue
		}
		if !p.DryRun {
			if gone, err := e.puller.RemoveRepository(r); err != nil || !gone {
				if err != nil {
					return out, err
				}
				continue
			}
		}
		over -= r.Size
		out = append(out, Pruned{ID: u.ID, Label: u.Kind + " " + u.Label, Reason: "not used for " + time.Since(r.Used).Round(time.Minute).String(), Size: r.Size})
	}
	return out, nil
}

// gitUsage is what is kept of a git repository, in the form that the store gives to its own.
func gitUsage(r source.Repository) store.Usage {
	label := r.Remote
	if label == "" {
		label = "a repository"
	}
	return store.Usage{ID: "git-" + r.ID[:min(len(r.ID), 16)], Kind: "git", Owner: r.Tenant, Label: label, Size: r.Size, Created: r.Used, LastUsed: r.Used, InUse: r.InUse}
}

// filter makes a predicate of conditions such as "type=result" and "label=*apt-get*", all of which must hold.
func filter(conditions []string) (func(store.Usage) bool, error) {
	if len(conditions) == 0 {
		return nil, nil
	}
	type condition struct{ field, pattern string }
	var all []condition
	for _, c := range conditions {
		field, pattern, ok := strings.Cut(c, "=")
		if !ok || field != "type" && field != "label" && field != "id" {
			return nil, diag.Errorf(diag.Invalid, "filter %q: it must be type=, label= or id= and a pattern", c)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, diag.Errorf(diag.Invalid, "filter %q: %w", c, err)
		}
		all = append(all, condition{field, pattern})
	}
	return func(u store.Usage) bool {
		for _, c := range all {
			v := map[string]string{"type": u.Kind, "label": u.Label, "id": u.ID}[c.field]
			// "/" is an ordinary character in labels.
			ok, err := path.Match(strings.ReplaceAll(c.pattern, "/", "\x00"), strings.ReplaceAll(v, "/", "\x00"))
			if err != nil || !ok {
				return false
			}
		}
		return true
	}, nil
}

// Usage lists what takes space.
func (e *Engine) Usage(ctx context.Context) ([]UsageItem, error) {
	all, err := e.store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	repos, err := e.puller.Repositories()
	if err != nil {
		return nil, err
	}
	for _, r := range repos {
		all = append(all, gitUsage(r))
	}
	out := make([]UsageItem, len(all))
	for i, u := range all {
		out[i] = usageItem(u)
	}
	return out, nil
}

func usageItem(u store.Usage) UsageItem {
	return UsageItem{ID: u.ID, Kind: u.Kind, Owner: u.Owner, Label: u.Label, Size: u.Size, Created: u.Created, Used: u.LastUsed, InUse: u.InUse, Why: u.Why}
}

// Check verifies the state. Full reads everything: blobs are hashed, and layers whose diff_id is known are written again
// to nowhere and compared.
func (e *Engine) Check(ctx context.Context, full, repair bool) ([]Problem, error) {
	found, err := e.store.Check(ctx, store.CheckOptions{Full: full, Repair: repair, DiffID: diffID, Differs: differs})
	out := make([]Problem, len(found))
	for i, p := range found {
		out[i] = Problem{What: p.Kind, Where: p.ID, Err: p.What, Repaired: p.Repaired}
	}
	return out, err
}

// diffID returns the digest of the tar of a layer's directory.
func diffID(ctx context.Context, dir string) (graph.Digest, error) {
	d, _, err := layer.DiffID(ctx, dir, layer.TarOptions{})
	return d, err
}

// differs compares a layer's directory with the blob that it was unpacked from.
func differs(ctx context.Context, blob io.Reader, dir string) (string, error) {
	plain, _, err := layer.Decompress(blob)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	return layer.Differs(ctx, plain, dir)
}

// copyLayer copies a layer's directory to an empty one, and returns the digest of the tar that it went through.
func copyLayer(ctx context.Context, from, to string) (graph.Digest, error) {
	r, w := io.Pipe()
	h := digest.Canonical.Digester()
	go func() {
		_, err := layer.WriteTar(ctx, io.MultiWriter(w, h.Hash()), from, layer.TarOptions{})
		w.CloseWithError(err)
	}()
	done, err := layer.Apply(ctx, r, to, layer.ApplyOptions{Unprivileged: os.Geteuid() != 0, MaxEntries: -1, MaxBytes: -1})
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what follows the end of the archive
	}
	if err == nil {
		err = layer.Finish(ctx, to, done, nil)
	}
	return h.Digest(), errors.Join(err, r.Close())
}
