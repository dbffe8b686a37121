package session

// Client is who a build works for.
type Client struct {
	// Tenant separates clients that must not see each other's work: it is part of every cache key, cache mount and name in the
	// store. The empty tenant is the engine's own user, and all clients of an engine that does not tell them apart.
	Tenant string
	// Name says who the client is within its tenant: a user or a certificate.
	Name string
	// Owner means that the client can read the state root anyway. Others get what is in the store only if they could get it
	// without.
	Owner bool
}

// ImageName is the store's name of an image that the client calls name. No reference has the sign between tenant and name.
func (c Client) ImageName(name string) string {
	if c.Tenant == "" {
		return name
	}
	return c.Tenant + "!" + name
}
