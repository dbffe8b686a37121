package graph

// Merge stacks its inputs: a later one's files and deletions hide those of the earlier ones.
type Merge struct{}

// Diff is what changed from its first input (the lower) to its second (the upper).
type Diff struct{}

// Passthrough gives inputs on as outputs. What it does not give on is made nevertheless.
type Passthrough struct {
	ID   string `json:"id"`
	Outs []int  `json:"outs"` // the input that each output is
}

// Build builds the graph that a file of its first input holds, in BuildKit's LLB encoding.
type Build struct {
	File  string            `json:"file,omitempty"` // path of the definition; "" = "/buildkit.llb.definition"
	Attrs map[string]string `json:"attrs,omitempty"`
}

func (*Merge) Kind() string       { return "merge" }
func (*Merge) Outputs() int       { return 1 }
func (*Merge) Uses(int) *Selector { return nil }
func (*Diff) Kind() string        { return "diff" }
func (*Diff) Outputs() int        { return 1 }
func (*Diff) Uses(int) *Selector  { return nil }
func (*Build) Kind() string       { return "build" }
func (*Build) Outputs() int       { return 1 }

func (*Passthrough) Kind() string       { return "passthrough" }
func (p *Passthrough) Outputs() int     { return len(p.Outs) }
func (*Passthrough) Uses(int) *Selector { return nil }

// Uses selects the definition's file.
func (b *Build) Uses(int) *Selector {
	f := b.File
	if f == "" {
		f = "/buildkit.llb.definition"
	}
	return &Selector{Paths: []Select{{Path: f, Follow: true}}}
}
