package dockerfile

import "github.com/strata-build/strata/diag"

// TargetInfo is a stage that can be built: `--call=targets`. Description is the comment above the FROM that starts
// with the stage's name.
type TargetInfo struct {
	Name        string      `json:"name,omitempty"`
	Default     bool        `json:"default,omitempty"`
	Description string      `json:"description,omitempty"`
	Base        string      `json:"base,omitempty"` // as written
	Platform    string      `json:"platform,omitempty"`
	At          []diag.Span `json:"-"`
}

// Targets lists the stages of a Dockerfile.
func Targets(src *diag.Source) ([]TargetInfo, error) {
	f, err := parse(src, nil)
	if err != nil {
		return nil, err
	}
	var out []TargetInfo
	for i, s := range f.stages {
		out = append(out, TargetInfo{
			Name: s.Name, Default: i == len(f.stages)-1, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform, At: spans(src, s.Location),
		})
	}
	return out, nil
}
