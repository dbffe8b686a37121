package engine

import "github.com/strata-build/strata/session"

// Client is who a build works for.
type Client = session.Client

// owner is the client of commands of the engine's own user.
func owner() Client { return Client{Owner: true} }
