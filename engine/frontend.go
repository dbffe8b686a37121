package engine

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// Frontend builds a Dockerfile whose language is not the built-in one, in a job that has the client's session. It lives above the
// engine, since it speaks with a program in BuildKit's protocol.
type Frontend func(ctx context.Context, j *Job, r FrontendRequest) (*FrontendResult, error)

// FrontendRequest is what a frontend is asked.
type FrontendRequest struct {
	Attrs  map[string]string // the request, in the words of BuildKit's Dockerfile frontend
	Sink   event.Sink        // for what it has to say
	Policy SourcePolicy      // that its sources must pass; nil = every source may be used
}

// FrontendResult is what a frontend makes: a plan, and what it knows for its exports; or the answer to a question.
type FrontendResult struct {
	Plan   *image.Plan
	Export ExportOptions
	Meta   map[string]string
}

// Engine is the one that the job is of.
func (j *Job) Engine() *Engine { return j.b.e }

// question is what is asked for in a build's place; "" is a build.
func (r *Request) question() string {
	switch {
	case r.Check:
		return "check"
	case r.Call == "build":
		return ""
	}
	return r.Call
}

// questions are the requests that frontends know. Source: frontend/subrequests of BuildKit.
var questions = map[string]string{"check": "frontend.lint", "outline": "frontend.outline", "targets": "frontend.targets"}

// foreign lets another frontend do what was asked for.
func (j *Job) foreign(ctx context.Context, req *Request, f *dockerfile.ForeignSyntax) (*Response, *image.Plan, ExportOptions, error) {
	none := ExportOptions{}
	for flag, set := range map[string]bool{
		"squash": req.Squash, "relayer": req.Relayer != "", "output-layers": len(req.OutputLayers) > 0, "verify-output": req.VerifyOutput,
	} {
		if set {
			return nil, nil, none, diag.Errorf(diag.Unsupported, "--%s needs the built-in Dockerfile frontend, but the Dockerfile asks for %s", flag, f.Ref).
				WithHint("set the build argument BUILDKIT_SYNTAX=dockerfile.v0 to ignore its syntax line")
		}
	}
	attrs, q := req.attributes(), req.question()
	if q != "" {
		if attrs["requestid"] = questions[q]; attrs["requestid"] == "" {
			return nil, nil, none, unknownCall(q)
		}
		attrs["frontend.caps"] = "moby.buildkit.frontend.subrequests"
	}
	res, err := j.b.e.opt.Frontend(ctx, j, FrontendRequest{Attrs: attrs, Sink: j.b.sink, Policy: j.b.policy})
	if err != nil {
		return nil, nil, none, err
	}
	if q != "" {
		resp, err := answered(q, res.Meta)
		return resp, nil, none, err
	}
	opt := res.Export
	opt.Provenance, opt.SBOM = req.Provenance, req.scanning()
	return nil, res.Plan, opt, nil
}

// answered is a frontend's answer to a question. Findings are an error, as those of the built-in checks are.
func answered(question string, meta map[string]string) (*Response, error) {
	text := meta["result.txt"]
	if code := meta["result.statuscode"]; code != "" && code != "0" {
		var found struct {
			BuildError struct{ Message string }
		}
		_ = strictjson.Unmarshal([]byte(meta["result.json"]), &found) // the text says the rest
		msg := strings.TrimSpace(text + "\n" + found.BuildError.Message)
		if msg == "" {
			msg = "the check has failed"
		}
		return nil, &diag.Error{Kind: diag.Failed, Msg: msg}
	}
	resp := &Response{Metadata: map[string]any{}, Text: text}
	if raw := meta["result.json"]; json.Valid([]byte(raw)) {
		resp.Metadata[question] = json.RawMessage(raw)
	}
	return resp, nil
}

// attributes are the request in the words of BuildKit's Dockerfile frontend. Source: frontend/dockerui.
func (r *Request) attributes() map[string]string {
	a := map[string]string{}
	set := func(k, v string) {
		if v != "" {
			a[k] = v
		}
	}
	number := func(k string, n int64) {
		if n != 0 {
			a[k] = strconv.FormatInt(n, 10)
		}
	}
	set("filename", r.Dockerfile)
	set("target", r.Target)
	set("context", r.Context)
	set("force-network-mode", string(r.Network))
	if r.LocalFile {
		a["dockerfilekey"] = "dockerfile"
	}
	if r.NoCache || len(r.NoCacheFilter) > 0 {
		a["no-cache"] = strings.Join(r.NoCacheFilter, ",")
		if r.NoCache {
			a["no-cache"] = "" // of all stages
		}
	}
	if r.Pull {
		a["image-resolve-mode"] = "pull"
	}
	if r.Epoch != nil {
		a["build-arg:SOURCE_DATE_EPOCH"] = formatUnix(*r.Epoch)
	}
	var platforms, hosts, ulimits []string
	for _, p := range r.Platforms {
		platforms = append(platforms, graph.FormatPlatform(p))
	}
	for _, h := range r.ExtraHosts {
		hosts = append(hosts, h.Host+"="+h.IP)
	}
	for _, u := range r.Limits.Ulimits {
		ulimits = append(ulimits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	set("platform", strings.Join(platforms, ","))
	set("add-hosts", csvLine(hosts))
	set("ulimit", csvLine(ulimits))
	l := &r.Limits
	for k, n := range map[string]int64{
		"shm-size": l.ShmSize, "memory": l.Memory, "memswap": l.MemorySwap, "cpushares": int64(l.CPUShares), "cpuperiod": int64(l.CPUPeriod), "cpuquota": l.CPUQuota,
	} {
		number(k, n)
	}
	set("cpusetcpus", l.CPUSet)
	set("cpusetmems", l.Mems)
	set("cgroup-parent", l.CgroupParent)
	for prefix, m := range map[string]map[string]string{"build-arg:": r.BuildArgs, "label:": r.Labels, "context:": r.BuildContexts} {
		for k, v := range m {
			a[prefix+k] = v
		}
	}
	return a
}

// csvLine writes a list as frontends read it.
func csvLine(fields []string) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	_ = w.Write(fields) // a builder takes all
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n")
}
