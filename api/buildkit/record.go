package buildkit

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/stack"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/history"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tracing"
)

// Media types of what records name, which clients know.
const (
	typeLog   = "application/vnd.buildkit.status.v0" // messages of Status, each after its length in 4 bytes, little-endian
	typeError = "application/vnd.googleapis.google.rpc.status+proto"

	typeProvenance = "application/vnd.in-toto+json" // of a predicate alone, as BuildKit has it here
)

func decodeRecord(o history.Record) (*record, error) {
	r := &record{BuildHistoryRecord: &control.BuildHistoryRecord{}, blobs: o.Blobs}
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(o.Value, r.BuildHistoryRecord)
	r.set(r.BuildHistoryRecord)
	return r, err
}

func saveRecord(files *history.Store, r *record) error {
	value, err := protojson.Marshal(r.BuildHistoryRecord)
	if err != nil {
		return diag.Errorf(diag.Internal, "the record of build %s: %w", r.Ref, err)
	}
	return files.Save(r.Ref, value, r.blobs)
}

// keep adds a blob to a record that is being made, and describes it.
func (r *record) keep(b history.Blob, err error) (*control.Descriptor, error) {
	if err != nil {
		return nil, err
	}
	r.blobs = append(r.blobs, b)
	return &control.Descriptor{MediaType: b.MediaType, Digest: b.Digest.String(), Size: b.Size}, nil
}

// end notes how a build ended, and forgets what is too old. Its trace is added when somebody wants it, or after a while: spans
// of the client come after the build's end.
func (s *Server) endRecord(ctx context.Context, b *build, resp map[string]string, buildErr error) {
	h := s.of(ctx).history
	h.mu.Lock()
	r := h.records[b.ref]
	h.mu.Unlock()
	if r == nil {
		return
	}
	total, done, cached, warnings := b.journal.counts()
	var errs []error
	note := func(d *control.Descriptor, err error) *control.Descriptor {
		errs = append(errs, err)
		return d
	}
	made := &record{}
	rec := &control.BuildHistoryRecord{CompletedAt: timestamppb.Now(), ExporterResponse: resp}
	rec.NumTotalSteps, rec.NumCompletedSteps, rec.NumCachedSteps, rec.NumWarnings = int32(total), int32(done), int32(cached), int32(warnings)
	rec.Logs = note(made.keep(h.putLog(b.journal)))
	rec.Result = &control.BuildResultInfo{Results: map[int64]*control.Descriptor{}}
	for i, d := range b.results {
		rec.Result.Results[int64(i)] = d
		if i == 0 {
			rec.Result.ResultDeprecated = d
		}
		blobs, err := s.putImage(ctx, h, d)
		made.blobs = append(made.blobs, blobs...)
		errs = append(errs, err)
	}
	if buildErr != nil {
		st := status.Convert(toStatus(buildErr)).Proto()
		rec.Error = &spb.Status{Code: st.Code, Message: st.Message}
		rec.ExternalError = note(made.keep(s.putError(h, st)))
	}
	if err := errors.Join(errs...); err != nil {
		h.log.Warn("the record of a build is not complete", "build", b.ref, "err", err)
	}
	h.mu.Lock()
	r.journal, r.blobs, r.origins = nil, made.blobs, b.origins
	h.change(r, func(all *control.BuildHistoryRecord) {
		all.CompletedAt, all.ExporterResponse, all.Logs, all.Result = rec.CompletedAt, rec.ExporterResponse, rec.Logs, rec.Result
		all.NumTotalSteps, all.NumCompletedSteps, all.NumCachedSteps, all.NumWarnings = rec.NumTotalSteps, rec.NumCompletedSteps, rec.NumCachedSteps, rec.NumWarnings
		all.Error, all.ExternalError = rec.Error, rec.ExternalError
	})
	h.trim()
	h.mu.Unlock()
	h.saved.Go(func() { h.complete(s.stopping, r, b.trace) })
}

// traceDelay is how long spans of a client are waited for.
const traceDelay = 3 * time.Second

// complete adds to a record what can wait.
func (h *pastBuilds) complete(stopping context.Context, r *record, rec *tracing.Recording) {
	defer close(r.final)
	t := time.NewTimer(traceDelay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wanted:
	case <-stopping.Done():
	}
	h.mu.Lock()
	if h.records[r.Ref] == r {
		h.addOrigins(r)
	}
	h.mu.Unlock()
	data, err := rec.JSON()
	if err == nil && len(data) > 0 {
		var b history.Blob
		if b, err = h.files.PutBytes(tracing.MediaType, data); err == nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.records[r.Ref] != r {
				return // forgotten
			}
			d, _ := r.keep(b, nil)
			h.change(r, func(all *control.BuildHistoryRecord) { all.Trace = d })
		}
	}
	if err != nil {
		h.log.Warn("the trace of a build cannot be kept", "build", r.Ref, "err", err)
	}
}

// finalize waits until nothing is to be added to a record any more.
func (h *pastBuilds) finalize(ctx context.Context, ref string) error {
	h.mu.Lock()
	r := h.records[ref]
	if r == nil || r.wanted == nil || r.CompletedAt == nil {
		h.mu.Unlock()
		return nil
	}
	select {
	case <-r.wanted:
	default:
		close(r.wanted)
	}
	h.mu.Unlock()
	select {
	case <-r.final:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// putLog writes what a build said.
func (h *pastBuilds) putLog(j *journal) (history.Blob, error) {
	j.mu.Lock()
	said := j.entries.all()
	j.mu.Unlock()
	return h.files.Put(typeLog, said)
}

// sendLog reads what a build that has ended said.
func (h *pastBuilds) sendLog(r *record, send func(*control.StatusResponse) error) error {
	if r.Logs == nil {
		return nil
	}
	f, _, err := h.files.Open(digest.Digest(r.Logs.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = batched(bufio.NewReader(f), send)
	return err
}

// putError writes an error with its details, and which program it comes from.
func (s *Server) putError(h *pastBuilds, st *spb.Status) (history.Blob, error) {
	st = proto.CloneOf(st)
	from := &stack.Stack{Cmdline: []string{filepath.Base(os.Args[0])}, Pid: int32(os.Getpid()), Version: Protocol, Revision: s.opt.Version}
	st.Details = append(st.Details, detailOf("github.com/moby/buildkit/stack.Stack+json", from))
	data, err := proto.Marshal(st)
	if err != nil {
		return history.Blob{}, err
	}
	return h.files.PutBytes(typeError, data)
}

// maxManifest bounds what is kept of an image in the history, in bytes of one blob.
const maxManifest = 16 << 20

// putImage keeps the manifests and configurations of an image, and what attests it, but none of its layers: the store may
// collect the image before the history forgets the build. What the store does not have is left out.
func (s *Server) putImage(ctx context.Context, h *pastBuilds, d *control.Descriptor) ([]history.Blob, error) {
	b, err := s.e.OpenBlob(ctx, digest.Digest(d.Digest))
	if diag.KindOf(err) == diag.NotFound || err == nil && b.Size() > maxManifest {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err = errors.Join(err, b.Close()); err != nil {
		return nil, err
	}
	kept, err := h.files.PutBytes(d.MediaType, data)
	if err != nil {
		return nil, err
	}
	out := []history.Blob{kept}
	if !strings.Contains(d.MediaType, "manifest") && !strings.Contains(d.MediaType, "index") {
		return out, nil
	}
	var below struct {
		Manifests []ocispec.Descriptor
		Config    ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	if err := strictjson.Unmarshal(data, &below); err != nil {
		return out, err
	}
	next := append(below.Manifests, below.Config)
	for _, l := range below.Layers {
		if strings.Contains(l.MediaType, "in-toto") {
			next = append(next, l)
		}
	}
	for _, n := range next {
		if n.Digest == "" {
			continue
		}
		more, err := s.putImage(ctx, h, &control.Descriptor{MediaType: n.MediaType, Digest: n.Digest.String(), Size: n.Size})
		if out = append(out, more...); err != nil {
			return out, err
		}
	}
	return out, nil
}

// sayTime tells a client what time it is here, in the header of a stream.
func (s *Server) sayTime(stream grpc.ServerStream) error {
	return stream.SendHeader(metadata.Pairs("buildkit-current-timestamp", time.Now().Format(time.RFC3339Nano)))
}
