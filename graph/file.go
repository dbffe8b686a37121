package graph

import "time"

// File makes, copies and removes files, in order.
type File struct {
	Actions []Action `json:"actions"`
}

// Action is one file action: exactly one of the pointers is set. In and From count the vertex's inputs first, then the
// results of the earlier actions: with two inputs, 2 is what the first action made. None is the empty tree.
type Action struct {
	In   int `json:"in"`             // the tree to change
	From int `json:"from,omitempty"` // the tree to copy from
	Out  int `json:"out"`            // the vertex's output that the result becomes, or None

	Copy    *Copy    `json:"copy,omitempty"`
	Mkfile  *Mkfile  `json:"mkfile,omitempty"`
	Mkdir   *Mkdir   `json:"mkdir,omitempty"`
	Rm      *Rm      `json:"rm,omitempty"`
	Symlink *Symlink `json:"symlink,omitempty"`
}

// Owner names a user and a group: by name, looked up in the passwd and group files of a tree, or by id. Nil pointers
// to an Owner mean: as in the source for a copy, root otherwise. A GID of None without a Group is the primary group of
// the named user, or the number of the user that is named by its id.
type Owner struct {
	User    string `json:"user,omitempty"` // a name; "" = UID
	UID     int    `json:"uid,omitempty"`
	UserIn  int    `json:"userIn,omitempty"` // the tree that holds /etc/passwd, counted as in Action
	Group   string `json:"group,omitempty"`
	GID     int    `json:"gid,omitempty"`
	GroupIn int    `json:"groupIn,omitempty"`
}

// Copy copies files into a tree. Its fields have the meaning of BuildKit's FileActionCopy.
type Copy struct {
	Src           string     `json:"src"`
	Dest          string     `json:"dest"` // a final "/" means: into this directory
	Owner         *Owner     `json:"owner,omitempty"`
	Mode          *uint32    `json:"mode,omitempty"`    // octal permissions for all
	ModeStr       string     `json:"modeStr,omitempty"` // symbolic, as in chmod(1)
	FollowSymlink bool       `json:"followSymlink,omitempty"`
	DirContents   bool       `json:"dirContents,omitempty"` // copy what is in a directory, not the directory
	Unpack        bool       `json:"unpack,omitempty"`      // unpack tar archives, compressed or not
	CreateDest    bool       `json:"createDest,omitempty"`
	Wildcard      bool       `json:"wildcard,omitempty"`
	AllowEmpty    bool       `json:"allowEmpty,omitempty"` // a pattern may match nothing
	Time          *time.Time `json:"time,omitempty"`       // mtime of everything that is written
	Include       []string   `json:"include,omitempty"`
	Exclude       []string   `json:"exclude,omitempty"`
	AlwaysReplace bool       `json:"alwaysReplace,omitempty"` // replace what is there, even of another type
	Required      []string   `json:"required,omitempty"`      // patterns of Include that must match something
}

// Mkfile writes a file.
type Mkfile struct {
	Path  string     `json:"path"`
	Mode  uint32     `json:"mode"`
	Data  []byte     `json:"data,omitempty"`
	Owner *Owner     `json:"owner,omitempty"`
	Time  *time.Time `json:"time,omitempty"`
}

// Mkdir makes a directory.
type Mkdir struct {
	Path    string     `json:"path"`
	Mode    uint32     `json:"mode"`
	Parents bool       `json:"parents,omitempty"`
	Owner   *Owner     `json:"owner,omitempty"`
	Time    *time.Time `json:"time,omitempty"`
}

// Rm removes a file or a directory with all that is in it; a symlink is removed, not followed.
type Rm struct {
	Path          string `json:"path"`
	AllowNotFound bool   `json:"allowNotFound,omitempty"`
	Wildcard      bool   `json:"wildcard,omitempty"`
}

// Symlink makes a symbolic link.
type Symlink struct {
	Target string     `json:"target"`
	Path   string     `json:"path"`
	Owner  *Owner     `json:"owner,omitempty"`
	Time   *time.Time `json:"time,omitempty"`
}

func (*File) Kind() string { return "file" }

// Outputs counts the actions that become an output.
func (f *File) Outputs() int {
	n := 0
	for _, a := range f.Actions {
		n = max(n, a.Out+1)
	}
	return n
}

// Uses selects what the copies read of an input that is nothing but copied from.
func (f *File) Uses(i int) *Selector {
	s := &Selector{}
	for _, a := range f.Actions {
		if a.In == i || a.ownerFrom(i) {
			return nil
		}
		if a.Copy == nil || a.From != i {
			continue
		}
		s.Paths = append(s.Paths, Select{
			Path: a.Copy.Src, Wildcard: a.Copy.Wildcard, Follow: a.Copy.FollowSymlink || a.Copy.Unpack,
			Contents: a.Copy.DirContents, Include: a.Copy.Include, Exclude: a.Copy.Exclude, Required: a.Copy.Required,
		})
	}
	return s
}

func (a *Action) ownerFrom(i int) bool {
	o := a.Owner()
	return o != nil && (o.User != "" && o.UserIn == i || o.Group != "" && o.GroupIn == i)
}

// Owner returns the owner that the action gives to what it writes, nil if it names none.
func (a *Action) Owner() *Owner {
	switch {
	case a.Copy != nil:
		return a.Copy.Owner
	case a.Mkfile != nil:
		return a.Mkfile.Owner
	case a.Mkdir != nil:
		return a.Mkdir.Owner
	case a.Symlink != nil:
		return a.Symlink.Owner
	}
	return nil
}
