package sandbox

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/netguard"
)

// NetworkConfig says what the default network of steps is.
type NetworkConfig struct {
	Mode   NetworkMode
	Subnet netip.Prefix // IPv4, addresses that the router may choose a /24 from; default 10.87.0.0/16
	CNI    CNIConfig
	Idle   int // network namespaces to keep for later steps; default 16
	DNS    DNS // of all steps

	MayUseHost     bool // Auto is HostAlways, with a warning, where nothing else can be made
	RefuseMetadata bool // steps reach no link-local address and no service with the machine's cloud credentials
}

// NetworkMode chooses how steps reach the network.
type NetworkMode string

const (
	Auto       NetworkMode = ""       // CNI if its configuration exists, else Bridge
	Bridge     NetworkMode = "bridge" // a link with this machine, behind its address
	HostAlways NetworkMode = "host"   // the network of this machine
	CNI        NetworkMode = "cni"    // what CNI plugins make
	NoNetwork  NetworkMode = "none"   // none: loopback only
)

// choose makes of Auto what it stands for.
func (c NetworkConfig) choose() NetworkMode {
	if c.Mode == Auto && c.CNI.Config != "" {
		if _, err := os.Stat(c.CNI.Config); err == nil {
			return CNI
		}
	}
	return c.Mode
}

// hostResolv is where the host's resolver configuration is.
const hostResolv = "/etc/resolv.conf"

// network hands out network namespaces.
type network struct {
	cfg    NetworkConfig
	owner  string
	warn   func(string)
	log    *slog.Logger
	none   *pool
	pairs  *pool  // of namespaces from which only another one can be reached
	resolv string // path of the host's resolv.conf

	cni   *cni  // nil = the default network is not made by plugins
	plugs *pool // of namespaces that they made

	mu      sync.Mutex
	decided bool
	router  *router // nil = the default network is the host's
	routed  *pool
	err     error
}

func newNetwork(cfg NetworkConfig, owner string, warn func(string), log *slog.Logger) (*network, error) {
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = netip.MustParsePrefix("10.87.0.0/16")
	}
	if !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > 24 {
		return nil, diag.Errorf(diag.Invalid, "the network %s of build steps must be IPv4 and at least a /24", cfg.Subnet)
	}
	if cfg.Idle == 0 {
		cfg.Idle = 16
	}
	switch cfg.Mode = cfg.choose(); cfg.Mode {
	case Auto, Bridge, HostAlways, CNI, NoNetwork:
	default:
		return nil, diag.Errorf(diag.Invalid, "invalid network mode: %q", cfg.Mode).WithHint("the modes are auto, bridge, cni, host and none")
	}
	n := &network{cfg: cfg, owner: owner, warn: warn, log: log, resolv: hostResolv}
	n.none = &pool{max: cfg.Idle, create: func() (*slot, error) {
		ns, err := newNS()
		if err != nil {
			return nil, err
		}
		return &slot{ns: ns}, nil
	}}
	n.pairs = &pool{max: cfg.Idle, create: newPair}
	return n, nil
}

// lease is the network of one step.
type lease struct {
	path    string // of the namespace; "" = the host's
	gateway string // the address of this machine as the step sees it
	resolv  resolvConf
	slot    *slot
	pool    *pool
	env     []string // that the step needs to use it
	stop    func()   // ends what serves it; nil = nothing
}

// release gives the network back. Dirty says that the step could change it.
func (l *lease) release(dirty bool) {
	if l.stop != nil {
		l.stop()
	}
	if l.slot != nil {
		l.pool.put(l.slot, dirty)
	}
}

// acquire returns the network of a step. Hostname is the name that a network with names knows it by; "" = none.
func (n *network) acquire(mode graph.Network, hostname string) (*lease, error) {
	l := &lease{gateway: "127.0.0.1", resolv: readResolvConf(n.resolv).override(n.cfg.DNS)}
	switch {
	case mode == graph.NetworkHost:
		return l, nil
	case mode == graph.NetworkNone || n.cfg.Mode == NoNetwork:
		return l, l.take(n.none)
	case n.cni != nil:
		return l, n.plug(l, hostname)
	}
	b, p, err := n.routerPool()
	if b == nil || err != nil {
		return l, err
	}
	l.gateway = b.gateway.String()
	if len(n.cfg.DNS.Servers) == 0 && !n.reachable(l.resolv) {
		l.resolv.servers = []string{b.nameserver()}
	}
	return l, l.take(p)
}

// reachable reports whether a step can ask all name servers itself.
func (n *network) reachable(c resolvConf) bool {
	return c.reachable() && !slices.ContainsFunc(c.servers, func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err == nil && n.cfg.RefuseMetadata && netguard.IsMetadata(ip)
	})
}

// plug makes a lease one of a network of plugins. A namespace with a name is used once.
func (n *network) plug(l *lease, hostname string) error {
	p := n.plugs
	if hostname != "" {
		p = &pool{create: func() (*slot, error) { return n.cni.newSlot(hostname) }}
	}
	if err := l.take(p); err != nil {
		return err
	}
	if l.slot.gateway != "" {
		l.gateway = l.slot.gateway
	}
	switch {
	case len(n.cfg.DNS.Servers) > 0:
	case len(l.slot.servers) > 0:
		l.resolv.servers = l.slot.servers
	case !n.reachable(l.resolv):
		l.resolv.servers = []string{fallbackDNS}
	}
	return nil
}

// take gives the lease a namespace.
func (l *lease) take(p *pool) error {
	s, err := p.get()
	if err != nil {
		return diag.Errorf(diag.Unavailable, "cannot make a network for the step: %w", err)
	}
	l.pool, l.slot, l.path = p, s, s.path()
	return nil
}

// routerPool makes the router when the first step needs it, and decides once what happens where it cannot be made.
func (n *network) routerPool() (*router, *pool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.decided {
		if err := n.decide(); err != nil {
			return nil, nil, err
		}
		n.decided = true
	}
	return n.router, n.routed, n.err
}

// decide makes the router. An error says that nothing was decided, for a reason that passes.
func (n *network) decide() error {
	if n.cfg.Mode == HostAlways {
		return nil
	}
	here, err := os.Open("/proc/self/ns/net")
	var b *router
	if err == nil {
		b, err = newRouter(n.cfg.Subnet, n.owner, here, n.resolv, n.refused())
	}
	switch {
	case err == nil:
		n.router, n.routed = b, &pool{max: n.cfg.Idle, create: b.newSlot}
		n.log.Info("network of build steps", "gateway", b.name, "subnet", b.subnet)
	case diag.KindOf(err) == diag.Exhausted:
		return diag.Errorf(diag.Exhausted, "cannot make the network of build steps: %w", err)
	case n.cfg.Mode == Auto && n.cfg.MayUseHost:
		n.warn("build steps use the network of this machine, because they cannot have one of their own: " + err.Error())
	default:
		install := ""
		if diag.KindOf(err) == diag.Unsupported {
			install = "apt-get install nftables; or "
		}
		n.err = diag.Errorf(diag.Unavailable, "cannot make the network of build steps: %w", err).
			WithHint("%sgive the steps this machine's network with --network=host, or in a daemon with --oci-worker-net=host, or none with --network=none", install)
	}
	return nil
}

// refused are the destinations that no step may reach, unless it has this machine's network.
func (n *network) refused() []netip.Prefix {
	if !n.cfg.RefuseMetadata {
		return nil
	}
	return netguard.Metadata()
}

func (n *network) close() {
	n.none.close()
	n.pairs.close()
	if n.plugs != nil {
		n.plugs.close()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.decided, n.err = true, diag.Errorf(diag.Unavailable, "the sandbox is closed")
	if n.router != nil {
		n.routed.close()
		n.router.close()
	}
}
