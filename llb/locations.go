package llb

import (
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Bounds of what is kept: the places of one vertex, and the lines of one place.
const (
	maxSpans = 100
	maxLines = 1000
)

// locate reads where ops come from. Lines count from 1 in both forms; characters count from 0 in LLB, columns from 1.
func (d *decoder) locate(src *pb.Source) error {
	if src == nil {
		return nil
	}
	d.meta.Sources = make([]*diag.Source, len(src.Infos))
	for i, info := range src.Infos {
		if info == nil {
			return invalidf("source file %d is missing", i)
		}
		d.meta.Sources[i] = sourceOf(info)
	}
	d.at = make(map[graph.Digest][]diag.Span, len(src.Locations))
	for dgst, all := range src.Locations {
		if all == nil {
			return invalidf("the locations of op %s are missing", dgst)
		}
		var spans []diag.Span
		for i, l := range all.Locations {
			if l == nil {
				return invalidf("location %d of op %s is missing", i, dgst)
			}
			if l.SourceIndex < 0 || int(l.SourceIndex) >= len(src.Infos) {
				return invalidf("location %d of op %s is in source file %d of %d", i, dgst, l.SourceIndex, len(src.Infos))
			}
			spans = appendSpans(spans, d.meta.Sources[l.SourceIndex], l.Ranges)
		}
		d.at[graph.Digest(dgst)] = spans
	}
	return nil
}

func sourceOf(info *pb.SourceInfo) *diag.Source {
	return &diag.Source{Name: info.Filename, Data: info.Data, Origin: info}
}

// Spans are places that a client knows, those of SourceInfo and Ranges.
func Spans(info *pb.SourceInfo, ranges []*pb.Range) []diag.Span {
	if info == nil {
		return nil
	}
	return appendSpans(nil, sourceOf(info), ranges)
}

func appendSpans(spans []diag.Span, src *diag.Source, ranges []*pb.Range) []diag.Span {
	for _, r := range ranges {
		s, ok := span(r)
		if !ok {
			continue
		}
		s.Source = src
		if n := len(spans); n > 0 && spans[n-1].Source == s.Source && spans[n-1].Last+1 == s.First && spans[n-1].Col == 0 && s.Col == 0 {
			spans[n-1].Last = s.Last // an instruction comes as a range for each of its lines
		} else if n < maxSpans {
			spans = append(spans, s)
		}
	}
	return spans
}

// span reads a range; one that makes no sense is no reason to refuse a build.
func span(r *pb.Range) (s diag.Span, ok bool) {
	from, to := r.GetStart(), r.GetEnd()
	if from.GetLine() < 1 {
		return s, false
	}
	s.First, s.Last = int(from.Line), max(int(from.Line), int(to.GetLine()))
	if c, end := from.Character, to.GetCharacter(); c >= 0 && (c > 0 || end > 0) {
		s.Col, s.Width = int(c)+1, max(int(end)-int(c), 0)
		if s.First != s.Last {
			s.Width = 0
		}
	}
	return s, true
}

// locations collects the places of vertices that are encoded.
type locations struct {
	src   pb.Source
	index map[*diag.Source]int32
}

func (l *locations) add(dgst graph.Digest, spans []diag.Span) {
	out := &pb.Locations{}
	for _, s := range spans {
		if s.Source == nil || s.First < 1 {
			continue
		}
		i, ok := l.index[s.Source]
		if !ok {
			if l.index == nil {
				l.index = map[*diag.Source]int32{}
				l.src.Locations = map[string]*pb.Locations{}
			}
			i = int32(len(l.src.Infos))
			l.index[s.Source] = i
			l.src.Infos = append(l.src.Infos, SourceInfo(s.Source))
		}
		out.Locations = append(out.Locations, &pb.Location{SourceIndex: i, Ranges: Ranges(s)})
	}
	if len(out.Locations) > 0 {
		l.src.Locations[string(dgst)] = out
	}
}

// SourceInfo is a source as clients know it, without the secrets of URLs. A source that came in a definition goes out as it came; one that was read from
// a tree, a graph.Edge, has that tree's definition.
func SourceInfo(s *diag.Source) *pb.SourceInfo {
	if s == nil {
		return nil
	}
	if info, ok := s.Origin.(*pb.SourceInfo); ok {
		data := diag.Redact(string(info.Data))
		if data == string(info.Data) {
			return info
		}
		info = info.CloneVT()
		info.Data = []byte(data)
		return info
	}
	info := &pb.SourceInfo{Filename: s.Name, Data: s.Redacted().Data, Language: "Dockerfile"}
	if e, ok := s.Origin.(graph.Edge); ok && !e.IsScratch() {
		if def, _, err := EncodeNamed(e); err == nil { // what only Strata can make has none
			info.Definition = def
		}
	}
	return info
}

// Ranges is a span as clients know it: a range for each line, or the part of one line.
func Ranges(s diag.Span) []*pb.Range {
	if s.Col > 0 {
		return []*pb.Range{{
			Start: &pb.Position{Line: int32(s.First), Character: int32(s.Col - 1)},
			End:   &pb.Position{Line: int32(max(s.First, s.Last)), Character: int32(s.Col - 1 + s.Width)},
		}}
	}
	var out []*pb.Range
	for n := s.First; n <= min(max(s.First, s.Last), s.First+maxLines); n++ {
		out = append(out, &pb.Range{Start: &pb.Position{Line: int32(n)}, End: &pb.Position{Line: int32(n)}})
	}
	return out
}
