package graph

import (
	"net/url"
	"time"
)

// source is what all sources have in common: one output, no input.
type source struct{}

func (source) Outputs() int       { return 1 }
func (source) Uses(int) *Selector { return nil }

// ResolveMode says where an image's name is looked up.
type ResolveMode string

const (
	ResolveDefault ResolveMode = ""      // the store first, then the registry
	ResolvePull    ResolveMode = "pull"  // the registry, always
	ResolveLocal   ResolveMode = "local" // the store, only
)

// Image is an image of a registry or of the store, by its full reference with tag or digest.
type Image struct {
	source
	Ref        string      `json:"ref"`
	Mode       ResolveMode `json:"-"`
	LayerLimit int         `json:"layerLimit,omitempty"` // only the lowest n layers; 0 = all
	Checksum   Digest      `json:"checksum,omitempty"`
	Record     string      `json:"-"` // what BuildKit's usage records call it: "regular", "internal", "frontend"
}

// OCILayout is an image in an OCI layout that the client or the store holds.
type OCILayout struct {
	source
	Ref        string `json:"ref"`             // name@sha256:…
	Store      string `json:"store,omitempty"` // the session's name of the layout
	Session    string `json:"-"`
	LayerLimit int    `json:"layerLimit,omitempty"`
}

// Blob is one blob of a registry (or of an OCI layout), as a file.
type Blob struct {
	source
	Ref      string `json:"ref"` // name@sha256:…
	Layout   bool   `json:"layout,omitempty"`
	Store    string `json:"store,omitempty"`
	Session  string `json:"-"`
	Record   string `json:"-"` // as in Image
	Filename string `json:"filename,omitempty"`
	Mode     uint32 `json:"mode,omitempty"`
	UID      int    `json:"uid,omitempty"`
	GID      int    `json:"gid,omitempty"`
}

// Git is a checkout of a git repository.
type Git struct {
	source
	Remote         string        `json:"remote"` // address, as git takes it
	Ref            string        `json:"ref,omitempty"`
	Subdir         string        `json:"subdir,omitempty"`
	Checksum       string        `json:"checksum,omitempty"` // the commit, or a prefix of it, that Ref must be
	KeepDir        bool          `json:"keepDir,omitempty"`  // keep .git
	SkipSubmodules bool          `json:"skipSubmodules,omitempty"`
	FetchByCommit  bool          `json:"fetchByCommit,omitempty"`
	MTimeCommit    bool          `json:"mtimeCommit,omitempty"` // files get the commit's time
	Bundle         bool          `json:"bundle,omitempty"`      // not a checkout: one file "bundle", as git bundle(1) makes it
	BundleFrom     string        `json:"bundleFrom,omitempty"`  // the blob with the bundle that commits come from: docker-image+blob:// or oci-layout+blob://
	Signature      *GitVerify    `json:"signature,omitempty"`
	Login          *url.Userinfo `json:"-"` // of an http remote
	AuthToken      string        `json:"-"` // names of secrets
	AuthHeader     string        `json:"-"`
	SSH            string        `json:"-"` // id of the forwarded agent
	KnownHosts     string        `json:"-"`
	Advice         bool          `json:"-"` // show what git advises
	Store          string        `json:"-"` // of BundleFrom, as in OCILayout
	Session        string        `json:"-"`
}

// GitVerify is what a commit's signature must satisfy.
type GitVerify struct {
	PubKey          string `json:"pubKey"`
	RejectExpired   bool   `json:"rejectExpired,omitempty"`
	RequireSigned   bool   `json:"requireSigned,omitempty"`
	IgnoreSignedTag bool   `json:"ignoreSignedTag,omitempty"`
}

// HTTP is a file that is downloaded.
type HTTP struct {
	source
	URL        string            `json:"url"`
	Checksum   Digest            `json:"checksum,omitempty"`
	Filename   string            `json:"filename,omitempty"` // "" = from the URL or the answer
	Mode       uint32            `json:"mode,omitempty"`     // 0 = 0600
	UID        int               `json:"uid,omitempty"`
	GID        int               `json:"gid,omitempty"`
	Header     map[string]string `json:"header,omitempty"`
	Login      *url.Userinfo     `json:"-"`
	AuthHeader string            `json:"-"` // name of the secret
	ModTime    *time.Time        `json:"modTime,omitempty"`
	Signature  *HTTPVerify       `json:"signature,omitempty"`
}

// HTTPVerify is a detached signature (OpenPGP, armored) that a download must have.
type HTTPVerify struct {
	PubKey    string `json:"pubKey"`
	Signature string `json:"signature"`
}

// Local is a directory of the client.
type Local struct {
	source
	Name      string   `json:"name"` // the session's name of it: "context", "dockerfile", …
	Include   []string `json:"include,omitempty"`
	Exclude   []string `json:"exclude,omitempty"`
	Follow    []string `json:"follow,omitempty"` // symlinks to follow when Include is a list of paths
	SharedKey string   `json:"-"`                // equal keys are versions of one directory
	Session   string   `json:"-"`                // "" = the build's own
	Unique    string   `json:"unique,omitempty"`
	Reread    bool     `json:"-"`                  // files are read even if size and times say that they are known
	Metadata  bool     `json:"metadata,omitempty"` // names, sizes and times only
	MetaExcl  []string `json:"metaExcl,omitempty"` // exceptions of Metadata, with content
}

// Identity leaves out what is checked but makes no other checkout: with the right checksum or without one, however it was
// found, a commit is the same.
func (g *Git) Identity() any {
	c := *g
	c.Checksum, c.FetchByCommit = "", false
	return &c
}

func (*Image) Kind() string     { return "source.image" }
func (*OCILayout) Kind() string { return "source.oci-layout" }
func (*Blob) Kind() string      { return "source.blob" }
func (*Git) Kind() string       { return "source.git" }
func (*HTTP) Kind() string      { return "source.http" }
func (*Local) Kind() string     { return "source.local" }
