package registry

import "maps"

// Trusting returns a client with the same credentials that takes plain http, and certificates that nobody vouches for,
// from the given registries: what registry.insecure=true asks for. It has connections of its own.
func (c *Client) Trusting(hosts ...string) *Client {
	cfg := c.net.cfg
	cfg.Credentials = c.credentials
	cfg.Hosts = maps.Clone(cfg.Hosts)
	if cfg.Hosts == nil {
		cfg.Hosts = map[string]HostConfig{}
	}
	for _, h := range hosts {
		conf := cfg.Hosts[h]
		conf.probe = true
		cfg.Hosts[h] = conf
	}
	return New(cfg)
}
