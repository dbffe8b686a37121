package llb

import (
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// maxSpans bounds the places of one vertex that are kept.
const maxSpans = 100

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
		d.meta.Sources[i] = &diag.Source{Name: info.Filename, Data: info.Data}
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
			for _, r := range l.Ranges {
				if s, ok := span(r); ok && len(spans) < maxSpans {
					s.Source = d.meta.Sources[l.SourceIndex]
					spans = append(spans, s)
				}
			}
		}
		d.at[graph.Digest(dgst)] = spans
	}
	return nil
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
			l.src.Infos = append(l.src.Infos, &pb.SourceInfo{Filename: s.Source.Name, Data: s.Source.Data})
		}
		r := &pb.Range{Start: &pb.Position{Line: int32(s.First)}, End: &pb.Position{Line: int32(max(s.First, s.Last))}}
		if s.Col > 0 {
			r.Start.Character, r.End.Character = int32(s.Col-1), int32(s.Col-1+s.Width)
		}
		out.Locations = append(out.Locations, &pb.Location{SourceIndex: i, Ranges: []*pb.Range{r}})
	}
	if len(out.Locations) > 0 {
		l.src.Locations[string(dgst)] = out
	}
}
