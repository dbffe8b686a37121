package buildkit

import (
	"context"
	"errors"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session/remote"
)

// Space is a number of bytes, or a share of the disk of the state. The zero value is none.
type Space struct {
	Bytes   int64
	Percent int64
}

// on returns the bytes on a disk of this size.
func (s Space) on(disk int64) int64 {
	if s.Percent > 0 {
		return disk / 100 * s.Percent
	}
	return s.Bytes
}

// GCRule says what is collected by itself, as BuildKit's gcpolicy does. A rule without sizes collects whatever its age allows.
type GCRule struct {
	All          bool     // also what images need that nobody has named
	Filters      []string // such as "type==source.local": only what one of them matches
	KeepDuration time.Duration
	Reserved     Space // stays
	MaxUsed      Space // what is above it goes
	MinFree      Space // what the disk is to have free, if the reserved space allows
}

// Check reports filters that are none, and what is negative.
func (r *GCRule) Check() error {
	if r.KeepDuration < 0 || r.Reserved.Bytes < 0 || r.MaxUsed.Bytes < 0 || r.MinFree.Bytes < 0 {
		return diag.Errorf(diag.Invalid, "what is to be kept must not be negative")
	}
	_, err := matcher(r.Filters, usageField)
	return err
}

// keep returns how many bytes of a total a rule leaves on a disk; 0 = it knows no size.
func (r *GCRule) keep(total, disk, free int64) int64 {
	reserved, most, minFree := r.Reserved.on(disk), r.MaxUsed.on(disk), r.MinFree.on(disk)
	if reserved == 0 && most == 0 && minFree == 0 {
		return 0
	}
	keep := most
	if keep == 0 && minFree > 0 {
		keep = total
	}
	if excess := minFree - free; minFree > 0 && excess > 0 {
		keep = min(keep, total-excess)
	}
	return max(keep, reserved, 1)
}

// policies are the rules as clients read them.
func (s *Server) policies() []*apitypes.GCPolicy {
	disk, _ := s.disk()
	var out []*apitypes.GCPolicy
	for _, r := range s.opt.GC {
		out = append(out, &apitypes.GCPolicy{
			All: r.All, Filters: r.Filters, KeepDuration: int64(r.KeepDuration),
			ReservedSpace: r.Reserved.on(disk), MaxUsedSpace: r.MaxUsed.on(disk), MinFreeSpace: r.MinFree.on(disk),
		})
	}
	return out
}

// disk is the size of the state's disk, and what is free there.
func (s *Server) disk() (size, free int64) {
	var st unix.Statfs_t
	if unix.Statfs(s.e.Root(), &st) != nil {
		return 0, 0
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize
}

// gcPause is the time between two collections.
const gcPause = time.Minute

// collecting collects by the rules: at first, and after builds.
func (s *Server) collecting(ctx context.Context) {
	if len(s.opt.GC) == 0 {
		return
	}
	for {
		if n, err := s.collect(ctx); err != nil && ctx.Err() == nil {
			s.opt.Log.Warn("cannot collect garbage", "cause", err)
		} else if n > 0 {
			s.opt.Log.Info("collected garbage by the rules of gcpolicy", "bytes", n)
		}
		select {
		case <-time.After(gcPause):
		case <-ctx.Done():
			return
		}
		select {
		case <-s.built:
		case <-ctx.Done():
			return
		}
	}
}

// Built says that a build of any client has ended: the rules are carried out soon.
func (s *Server) Built() {
	select {
	case s.built <- struct{}{}:
	default: // the next collection has not begun
	}
}

// collect carries the rules out, one after the other.
func (s *Server) collect(ctx context.Context) (freed int64, err error) {
	var all []*tenant
	s.each(func(t *tenant) { all = append(all, t) })
	for i := range s.opt.GC {
		err = errors.Join(err, s.prune(ctx, &s.opt.GC[i], all, everything, func(u *control.UsageRecord) error {
			freed += u.Size
			return nil
		}))
	}
	return freed, err
}

func everything(engine.UsageItem) bool { return true }

// prune carries a rule out: on those items of the engine's state that may go, and on the directories of these tenants' clients.
func (s *Server) prune(ctx context.Context, r *GCRule, of []*tenant, may func(engine.UsageItem) bool, send func(*control.UsageRecord) error) error {
	match, err := matcher(r.Filters, usageField)
	if err != nil {
		return err
	}
	usage, err := s.e.Usage(ctx)
	if err != nil {
		return err
	}
	var total, local int64
	for _, u := range usage {
		total += u.Size
	}
	for _, t := range of {
		slots, err := t.sessions.Usage()
		if err != nil {
			return err
		}
		for _, x := range slots {
			local += x.Size
		}
	}
	size, free := s.disk()
	keep := r.keep(total+local, size, free)
	if keep > 0 && total+local <= keep {
		return nil
	}
	policy := engine.PrunePolicy{All: r.All, Mounts: true, Until: r.KeepDuration}
	if keep > 0 {
		policy.KeepBytes = max(keep-local, 1)
	}
	policy.Match = func(u engine.UsageItem) bool {
		return may(u) && match(&control.UsageRecord{
			ID: u.ID, RecordType: usageType(u.Kind), Description: u.Label, InUse: u.InUse, Mutable: usageType(u.Kind) == typeCache,
		})
	}
	freed, err := s.e.Prune(ctx, policy)
	if err != nil {
		return err
	}
	left := total + local
	for _, f := range freed.Removed {
		left -= f.Size
		if err := send(&control.UsageRecord{ID: f.ID, Size: f.Size, Description: f.Label, RecordType: typeRegular}); err != nil {
			return err
		}
	}
	for _, t := range of {
		slots, err := t.sessions.Prune(func(x remote.Slot) bool {
			if keep > 0 && left <= keep || !match(slotRecord(x)) || (r.KeepDuration > 0 && time.Since(x.Used) < r.KeepDuration) {
				return true
			}
			left -= x.Size
			return false
		})
		for _, x := range slots {
			err = errors.Join(err, send(slotRecord(x)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
