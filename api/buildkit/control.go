package buildkit

import (
	"context"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session/remote"
)

// Protocol is the version of BuildKit whose API this is. Clients choose what they ask for by it.
const Protocol = "v0.34.1"

func (s *Server) version() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{Package: "github.com/strata-build/strata", Version: Protocol, Revision: s.opt.Version, DockerfileVersion: dockerfile.Version}
}

// Info tells the version.
func (s *Server) Info(context.Context, *control.InfoRequest) (*control.InfoResponse, error) {
	return &control.InfoResponse{BuildkitVersion: s.version()}, nil
}

// ListWorkers describes the one worker.
func (s *Server) ListWorkers(_ context.Context, req *control.ListWorkersRequest) (*control.ListWorkersResponse, error) {
	match, err := matcher(req.Filter, func(w *apitypes.WorkerRecord, field string) (string, bool) {
		if field == "id" {
			return w.GetID(), true
		}
		name, ok := cutLabel(field)
		return w.GetLabels()[name], ok
	})
	if err != nil {
		return nil, err
	}
	out := &control.ListWorkersResponse{}
	for _, w := range s.workers() {
		if match(w) {
			out.Record = append(out.Record, w)
		}
	}
	return out, nil
}

func cutLabel(field string) (string, bool) {
	const p = "labels."
	if len(field) <= len(p) || field[:len(p)] != p {
		return "", false
	}
	name := field[len(p):]
	if u, err := strconv.Unquote(name); err == nil {
		name = u
	}
	return name, true
}

// label begins the labels of workers.
const label = "org.mobyproject.buildkit.worker."

func (s *Server) workers() []*apitypes.WorkerRecord {
	labels := map[string]string{
		label + "executor": "oci", label + "snapshotter": "overlayfs", label + "network": s.e.Network(), label + "oci.process-mode": "sandbox",
	}
	if name, err := os.Hostname(); err == nil {
		labels[label+"hostname"] = name
	}
	maps.Copy(labels, s.opt.Labels)
	p := engine.Native()
	var devices []*apitypes.CDIDevice
	for _, d := range s.e.Devices() {
		devices = append(devices, &apitypes.CDIDevice{Name: d.Name, AutoAllow: d.Free, Annotations: d.Annotations})
	}
	return []*apitypes.WorkerRecord{{
		ID: s.id, CDIDevices: devices, Labels: labels, BuildkitVersion: s.version(), GCPolicy: s.policies(),
		Platforms: []*pb.Platform{{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}},
	}}
}

// Record types of BuildKit.
const (
	typeRegular = "regular"
	typeLocal   = "source.local"
	typeCache   = "exec.cachemount"
	typeGit     = "source.git.checkout"
)

func usageType(kind string) string {
	switch kind {
	case "mount":
		return typeCache
	case "git":
		return typeGit
	}
	return typeRegular
}

func usageField(u *control.UsageRecord, field string) (string, bool) {
	switch field {
	case "id":
		return u.GetID(), true
	case "type":
		return u.GetRecordType(), true
	case "description":
		return u.GetDescription(), true
	case "inuse":
		return strconv.FormatBool(u.GetInUse()), true
	case "mutable":
		return strconv.FormatBool(u.GetMutable()), true
	case "immutable":
		return strconv.FormatBool(!u.GetMutable()), true
	case "shared":
		return strconv.FormatBool(u.GetShared()), true
	case "private":
		return strconv.FormatBool(!u.GetShared()), true
	}
	return "", false
}

// usage is what takes space.
func (s *Server) usage(ctx context.Context) ([]*control.UsageRecord, error) {
	all, err := s.e.Usage(ctx)
	if err != nil {
		return nil, err
	}
	of := s.of(ctx)
	var out []*control.UsageRecord
	for _, u := range all {
		if !of.sees(u) {
			continue
		}
		if strings.HasPrefix(u.Why, "image ") {
			continue // images are no cache: nobody prunes them here
		}
		out = append(out, &control.UsageRecord{
			ID: u.ID, InUse: u.InUse, Size: u.Size, CreatedAt: stamp(u.Created), LastUsedAt: stamp(later(u.Created, u.Used)), UsageCount: 1,
			Description: u.Label, RecordType: usageType(u.Kind), Mutable: usageType(u.Kind) == typeCache,
		})
	}
	slots, err := of.sessions.Usage()
	for _, x := range slots {
		out = append(out, slotRecord(x))
	}
	return out, err
}

// stamp is nil for a time that is not known, which clients do not print then.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func slotRecord(x remote.Slot) *control.UsageRecord {
	return &control.UsageRecord{
		ID: x.Name, InUse: x.InUse, Size: x.Size, CreatedAt: timestamppb.New(x.Used), LastUsedAt: timestamppb.New(x.Used), UsageCount: 1,
		Description: "local source of a client", RecordType: typeLocal, Mutable: true,
	}
}

// DiskUsage lists what takes space.
func (s *Server) DiskUsage(ctx context.Context, req *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	match, err := matcher(req.Filter, usageField)
	if err != nil {
		return nil, err
	}
	done, err := s.quota.read(ctx, peerOf(ctx).Identity)
	if err != nil {
		return nil, err
	}
	defer done()
	all, err := s.usage(ctx)
	if err != nil {
		return nil, err
	}
	out := &control.DiskUsageResponse{}
	for _, u := range all {
		if match(u) && (req.AgeLimit <= 0 || time.Since(u.LastUsedAt.AsTime()) >= time.Duration(req.AgeLimit)) {
			out.Record = append(out.Record, u)
		}
	}
	return out, nil
}

// Prune removes what nothing needs and tells what it was.
func (s *Server) Prune(req *control.PruneRequest, stream control.Control_PruneServer) error {
	if req.KeepDuration < 0 || req.ReservedSpace < 0 || req.MaxUsedSpace < 0 || req.MinFreeSpace < 0 {
		return diag.Errorf(diag.Invalid, "what is to be kept must not be negative")
	}
	r := &GCRule{
		All: req.All, Filters: req.Filter, KeepDuration: time.Duration(req.KeepDuration),
		Reserved: Space{Bytes: req.ReservedSpace}, MaxUsed: Space{Bytes: req.MaxUsedSpace}, MinFree: Space{Bytes: req.MinFreeSpace},
	}
	done, err := s.quota.read(stream.Context(), peerOf(stream.Context()).Identity) // it walks through the whole state
	if err != nil {
		return err
	}
	defer done()
	of := s.of(stream.Context())
	return s.prune(stream.Context(), r, []*tenant{of}, of.sees, stream.Send)
}
