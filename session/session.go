// Package session is how a build reaches the client that asked for it: files, secrets, ssh agents, credentials.
//
// The engine sees the [Session] interface only. [Local] implements it in the process of the command line; a server
// implements it over its protocol. A session belongs to one build.
package session

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Session is the client's side of one build. Every method may be called at any time until the build ends, from many
// goroutines. What the client does not have is a diag.NotFound error.
type Session interface {
	Secrets
	// Dir returns the client's directory of that name, such as "context".
	Dir(ctx context.Context, name string) (Dir, error)
	// Credential returns the client's login for a repository, as HOST/REPOSITORY, or for a host; the zero Credential is
	// anonymous access.
	Credential(ctx context.Context, target string) (Credential, error)
	// Output returns where an exporter writes what it makes for the client.
	Output(ctx context.Context, id string) (Output, error)
}

// Secrets is what a step may ask of a client while it runs.
type Secrets interface {
	// Secret returns a secret's bytes.
	Secret(ctx context.Context, id string) ([]byte, error)
	// SSH connects to the client's ssh agent of that id; "" is "default".
	SSH(ctx context.Context, id string) (io.ReadWriteCloser, error)
}

// Syncer is a session whose directories are on another machine: Sync brings what op selects of one to this machine. The
// directory holds that and nothing else, and does not change until the session ends. progress is told the bytes so far, seldom, and the end.
type Syncer interface {
	Sync(ctx context.Context, op *graph.Local, progress func(n int64, end bool)) (Dir, error)
}

// Describing is a session whose client is told what an output will hold before it takes it, under the keys of its response: it may
// have it already.
type Describing interface {
	OutputOf(ctx context.Context, id string, about map[string]string) (Output, error)
}

// Layouts is a session that has images in a store of content. Layout brings one to this machine, for a platform; Blob reads one
// blob, whose digest is right when it ends.
type Layouts interface {
	Layout(ctx context.Context, op *graph.OCILayout, p graph.Platform) (Dir, error)
	Blob(ctx context.Context, op *graph.Blob, d graph.Digest) (io.ReadCloser, error)
}

// Contents is a session whose client has stores of content that the build reads and writes, such as directories for caches:
// store is the client's name of one. A blob that is missing is diag.NotFound; what is read is not verified.
type Contents interface {
	StatContent(ctx context.Context, store string, d graph.Digest) (size int64, err error)
	ReadContent(ctx context.Context, store string, d graph.Digest, offset int64) (io.ReadCloser, error)
	WriteContent(ctx context.Context, store string, d image.Descriptor, r io.Reader) error
}

// Uploader is a session that can send a stream which a URL of the host [UploadHost] names.
type Uploader interface {
	Upload(ctx context.Context, path string) (io.ReadCloser, error)
}

// UploadHost is the host of URLs that name streams of the client, as BuildKit's clients write them.
const UploadHost = "buildkit-session"

// Dir is a directory of the client that can be read on this machine. Key is the same for versions of one directory, so
// that what is known of its files is found again; "" means Path.
type Dir struct {
	Path string
	Key  string
}

// HasAttr reports whether builds see an extended attribute of a file in a client's directory: those of users and the capability, as
// with BuildKit. What an overlay of a user keeps there is not the file's.
func HasAttr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// Credential is a login at a registry: name and password, or a token of one of the two kinds, or a client that logs in itself
// and hands out tokens.
type Credential struct {
	Username, Password         string
	IdentityToken, AccessToken string
	From                       string      // where the login was looked for, for messages; "" = not known
	Tokens                     TokenSource `json:"-"`
}

// TokenSource gives tokens to a registry's client.
type TokenSource interface {
	Token(context.Context, TokenRequest) (Token, error)
}

// TokenRequest is what a registry has answered to a request without a token, and what the token is for.
type TokenRequest struct {
	Realm, Service string
	Scopes         []string // "repository:NAME:pull,push"
}

// Token is a bearer token and how long it is good for; 0 is not known.
type Token struct {
	Value string
	Life  time.Duration
}

// Output is a destination of the client: a directory to write into, or a stream. Send, if it is set, brings the complete
// directory to the client.
type Output struct {
	Dir  string
	File io.WriteCloser
	Send func(context.Context) error
}
