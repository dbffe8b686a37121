package diag

// Warning is something that is worth a look but fails nothing, such as a lint rule's finding.
type Warning struct {
	Rule   string   `json:"rule,omitempty"` // "StageNameCasing"; "" = not a lint rule
	Msg    string   `json:"msg"`
	Detail []string `json:"detail,omitempty"`
	URL    string   `json:"url,omitempty"`
	At     []Span   `json:"at,omitempty"`
	Level  int      `json:"level,omitempty"`
}
