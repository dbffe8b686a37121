package registry

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/strata-build/strata/session"
)

// Client reads from and writes to registries. It is safe for concurrent use.
type Client struct {
	net         *network
	credentials Credentials
	mu          sync.Mutex
	logins      map[*endpoint]*login
}

// network is what clients with different credentials share.
type network struct {
	cfg       Config
	timing    Timing
	log       *slog.Logger
	mu        sync.Mutex
	endpoints map[string]*endpoint
	wrongs    map[wrongAnswer]int
}

// endpoint is one server that answers for a registry.
type endpoint struct {
	name   string // as credentials know it: "docker.io", "mirror.example.com"
	host   string // where it is: "registry-1.docker.io"
	prefix string // in front of repository names, "" or "path/"
	web    *Web

	mu     sync.Mutex
	scheme string // "" until a server on this machine was asked
}

// New makes a client.
func New(cfg Config) *Client {
	n := &network{cfg: cfg, timing: cfg.Timing.orDefaults(), log: cfg.Log, endpoints: map[string]*endpoint{}}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.cfg.UserAgent == "" {
		n.cfg.UserAgent = "strata"
	}
	return &Client{net: n, credentials: cfg.Credentials, logins: map[*endpoint]*login{}}
}

// For returns a client over the same connections with other credentials and no tokens yet: one per build, so that no
// build uses the login of another.
func (c *Client) For(credentials Credentials) *Client {
	return &Client{net: c.net, credentials: credentials, logins: map[*endpoint]*login{}}
}

// Close drops idle connections, those of clients made by For as well.
func (c *Client) Close() {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for _, ep := range c.net.endpoints {
		ep.web.Close()
	}
}

// Login returns the login that a repository's registry is asked with.
func (c *Client) Login(ctx context.Context, ref Ref) (session.Credential, error) {
	return c.credential(ctx, ref.Name())
}

func (c *Client) credential(ctx context.Context, target string) (session.Credential, error) {
	if c.credentials == nil {
		return session.Credential{}, nil
	}
	return c.credentials(ctx, target)
}

// readers returns the endpoints that answer for host, mirrors first.
func (c *Client) readers(host string) ([]*endpoint, error) {
	var eps []*endpoint
	for _, m := range c.net.cfg.Hosts[host].Mirrors {
		ep, err := c.net.endpoint(m)
		if err != nil {
			return nil, err
		}
		eps = append(eps, ep)
	}
	origin, err := c.net.endpoint(host)
	if err != nil {
		return nil, err
	}
	return append(eps, origin), nil
}

// endpoint returns the endpoint for host[:port][/path], with or without a scheme.
func (n *network) endpoint(name string) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ep := n.endpoints[name]; ep != nil {
		return ep, nil
	}
	scheme, rest, found := strings.Cut(name, "://")
	if !found {
		scheme, rest = "", name
	}
	host, path, _ := strings.Cut(rest, "/")
	path = strings.Trim(strings.TrimPrefix(path, "v2/"), "/")
	conf := n.cfg.Hosts[host]
	switch {
	case scheme != "", conf.probe:
	case conf.HTTP:
		scheme = "http"
	case conf.Insecure, len(conf.CA) > 0, len(conf.KeyPairs) > 0, !isLoopback(host):
		scheme = "https"
	}
	cfg, err := conf.tlsConfig()
	if err != nil {
		return nil, err
	}
	if scheme == "" {
		cfg.InsecureSkipVerify = true // this machine, where plain http is taken too
	}
	ep := &endpoint{name: host, host: host, scheme: scheme, web: NewWeb(WebOptions{
		TLS: cfg, UserAgent: n.cfg.UserAgent, Header: n.timing.Header, AllowMetadata: n.cfg.AllowMetadata,
	})}
	if path != "" {
		ep.prefix = path + "/"
	}
	if host == DockerHub || host == "index.docker.io" {
		ep.name, ep.host = DockerHub, "registry-1.docker.io"
	}
	n.endpoints[name] = ep
	return ep, nil
}

// base returns the endpoint's URL. A registry on this machine is asked once which protocol it speaks.
func (ep *endpoint) base(ctx context.Context) (*url.URL, error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.scheme == "" {
		scheme, err := ep.probe(ctx)
		if err != nil {
			return nil, unreachable(ep, &url.URL{Scheme: "http", Host: ep.host, Path: "/v2/"}, err)
		}
		ep.scheme = scheme
	}
	return &url.URL{Scheme: ep.scheme, Host: ep.host}, nil
}

// probe tries plain http first. A TLS server answers that with 400 or by hanging up.
func (ep *endpoint) probe(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ep.host+"/v2/", nil)
	if err != nil {
		return "", err
	}
	resp, err := ep.web.Do(req)
	if err == nil {
		defer Drain(resp.Body)
		if resp.StatusCode != http.StatusBadRequest {
			return "http", nil
		}
	}
	if err != nil && isDial(err) {
		return "", err
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // only to learn the protocol
	conn, tlsErr := d.DialContext(ctx, "tcp", ep.host)
	if tlsErr != nil {
		return "http", ctx.Err()
	}
	return "https", conn.Close()
}

// repo returns the URL of something of a repository.
func (ep *endpoint) repo(ctx context.Context, ref Ref, path string) (*url.URL, error) {
	u, err := ep.base(ctx)
	if err != nil {
		return nil, err
	}
	u.Path = "/v2/" + ep.prefix + ref.Repo + "/" + path
	return u, nil
}

// scope names an access right in the form of Docker's token protocol.
func (ep *endpoint) scope(repo, actions string) string {
	return "repository:" + ep.prefix + repo + ":" + actions
}
