package provenance

import (
	"bytes"
	"strconv"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// step is one step of the build, by BuildKit's definition of it.
type step struct {
	ID     string   `json:"id,omitempty"`
	Op     *pb.Op   `json:"op,omitempty"`
	Inputs []string `json:"inputs,omitempty"` // "step0:0": the output of a step
}

type buildConfig struct {
	Definition    []step                  `json:"llbDefinition,omitempty"`
	DigestMapping map[graph.Digest]string `json:"digestMapping,omitempty"` // what a definition calls a step -> its ID
}

// source is what the steps were written in.
type source struct {
	Locations map[string]*pb.Locations `json:"locations,omitempty"` // by step
	Infos     []sourceInfo             `json:"infos,omitempty"`
}

type sourceInfo struct {
	Filename string `json:"filename,omitempty"`
	Language string `json:"language,omitempty"`
	Data     []byte `json:"data,omitempty"`
	buildConfig
}

func stepID(n int) string { return "step" + strconv.Itoa(n) }

// steps numbers the ops of a definition, inputs first. The last one only names the result.
func steps(def *pb.Definition) (buildConfig, error) {
	var c buildConfig
	if len(def.GetDef()) < 2 {
		return c, nil
	}
	ops := make(map[graph.Digest]*pb.Op, len(def.Def))
	var last graph.Digest
	for _, raw := range def.Def {
		op := &pb.Op{}
		if err := unmarshal(raw, op); err != nil {
			return c, diag.Errorf(diag.Internal, "a step of the build cannot be read: %w", err)
		}
		last = digest.FromBytes(raw)
		ops[last] = op
	}
	c.DigestMapping = map[graph.Digest]string{}
	visit := func(d graph.Digest) {
		s := step{Op: ops[d]}
		op := s.Op
		for _, in := range op.Inputs {
			s.Inputs = append(s.Inputs, c.DigestMapping[graph.Digest(in.Digest)]+":"+strconv.FormatInt(in.Index, 10))
		}
		op.Inputs = nil
		if src := op.GetSource(); src != nil {
			delete(src.Attrs, pb.AttrLocalSessionID)
			delete(src.Attrs, pb.AttrLocalUniqueID)
		}
		s.ID = stepID(len(c.Definition))
		c.DigestMapping[d] = s.ID
		c.Definition = append(c.Definition, s)
	}
	inputsFirst(ops, last, visit)
	return c, nil
}

// inputsFirst visits an op and those below it, each once, without recursion: a chain has as many levels as a message has room
// for. Circles, which no graph has, are cut.
func inputsFirst(ops map[graph.Digest]*pb.Op, root graph.Digest, visit func(graph.Digest)) {
	seen := map[graph.Digest]bool{}
	type frame struct {
		d    graph.Digest
		next int
	}
	var stack []frame
	enter := func(d graph.Digest) {
		if ops[d] != nil && !seen[d] {
			seen[d] = true
			stack = append(stack, frame{d: d})
		}
	}
	enter(root)
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if in := ops[top.d].Inputs; top.next < len(in) {
			top.next++
			enter(graph.Digest(in[top.next-1].GetDigest()))
			continue
		}
		visit(top.d)
		stack = stack[:len(stack)-1]
	}
}

// unmarshal decodes an op, which may hold definitions, to a bounded depth.
func unmarshal(raw []byte, op *pb.Op) error {
	const maxNesting = 100
	return proto.UnmarshalOptions{RecursionLimit: maxNesting}.Unmarshal(raw, op)
}

// places says where the steps of a definition were written. A file that was read more than once is one.
func places(def *pb.Definition, c buildConfig) (*source, error) {
	if len(def.GetSource().GetInfos()) == 0 {
		return nil, nil
	}
	out := &source{Locations: map[string]*pb.Locations{}}
	at := make([]int32, len(def.Source.Infos))
	for i, info := range def.Source.Infos {
		at[i] = int32(len(out.Infos))
		for k, known := range out.Infos {
			if known.Filename == info.GetFilename() && bytes.Equal(known.Data, info.GetData()) {
				at[i] = int32(k)
			}
		}
		if int(at[i]) < len(out.Infos) {
			continue
		}
		made, err := steps(info.GetDefinition())
		if err != nil {
			return nil, err
		}
		out.Infos = append(out.Infos, sourceInfo{info.GetFilename(), info.GetLanguage(), info.GetData(), made})
	}
	for d, l := range def.Source.Locations {
		id, ok := c.DigestMapping[graph.Digest(d)]
		if !ok {
			continue
		}
		all := &pb.Locations{}
		for _, x := range l.GetLocations() {
			y := &pb.Location{Ranges: x.GetRanges()}
			if i := x.GetSourceIndex(); i >= 0 && int(i) < len(at) {
				y.SourceIndex = at[i]
			}
			all.Locations = append(all.Locations, y)
		}
		out.Locations[id] = all
	}
	return out, nil
}
