package graph

// Selector says which files of a tree matter to the one who reads it. The zero Selector selects nothing.
type Selector struct {
	Paths  []Select `json:"paths,omitempty"`
	Layers bool     `json:"layers,omitempty"` // not files: the diff_ids of the tree's layers, bottom first
}

// Select names one path of a tree and what is wanted below it. Paths are absolute within the tree.
type Select struct {
	Path     string   `json:"path"`
	Wildcard bool     `json:"wildcard,omitempty"` // Path is a pattern of path.Match
	Follow   bool     `json:"follow,omitempty"`   // follow a symlink that Path itself names
	Contents bool     `json:"contents,omitempty"` // only what is in the directory: its own mode and owner do not matter
	Include  []string `json:"include,omitempty"`  // patterns relative to Path, as in .dockerignore; empty = all
	Exclude  []string `json:"exclude,omitempty"`
	Required []string `json:"required,omitempty"` // patterns of Include of which each must match something
}

// All selects the whole tree.
func All() *Selector { return &Selector{Paths: []Select{{Path: "/"}}} }

// HasWildcard reports whether a path is a pattern of path.Match.
func HasWildcard(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}
