package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// The addresses of a step and of its proxy. They are the same for all: each pair has its namespaces to itself.
var (
	stepAddr  = netip.AddrFrom4([4]byte{169, 254, 91, 2})
	proxyAddr = netip.AddrFrom4([4]byte{169, 254, 91, 1})
)

const pairBits = 30

// newPair makes the namespace of a step, and one that is all that can be reached from it.
func newPair() (_ *slot, err error) {
	s := &slot{}
	if s.ns, err = newNS(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.far, err = newNS(); err != nil {
		return nil, err
	}
	far, err := netlink.NewHandleAt(netns.NsHandle(s.far.Fd()), 0)
	if err != nil {
		return nil, err
	}
	defer far.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "step"
	if err := far.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.ns.Fd())}); err != nil {
		return nil, fmt.Errorf("add a veth pair: %w", err)
	}
	near, err := netlink.NewHandleAt(netns.NsHandle(s.ns.Fd()), 0)
	if err != nil {
		return nil, err
	}
	defer near.Close()
	return s, errors.Join(start(far, "step", proxyAddr), start(near, "eth0", stepAddr))
}

func start(h *netlink.Handle, name string, ip netip.Addr) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(ip, pairBits)}), h.LinkSetUp(l)); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

// behindProxy is the network of a step that has a proxy alone. It starts the proxy.
func (n *network) behindProxy(mode graph.Network, p Proxy) (*lease, error) {
	out, err := n.acquire(mode.Direct(), "")
	if err != nil {
		return nil, err
	}
	l := &lease{gateway: out.gateway, resolv: out.resolv}
	if err := l.take(n.pairs); err != nil {
		out.release(false)
		return nil, err
	}
	var listener net.Listener
	err = inNS(l.slot.far, func() (err error) {
		listener, err = net.Listen("tcp4", net.JoinHostPort(proxyAddr.String(), "0"))
		return err
	})
	if err != nil {
		l.release(true)
		out.release(false)
		return nil, diag.Errorf(diag.Unavailable, "cannot start the proxy of the step: %w", err)
	}
	stop := p.Serve(listener, out.dial)
	l.env, l.stop = proxyEnv(listener.Addr().String()), func() { stop(); out.release(false) }
	return l, nil
}

// proxyEnv are the variables by which programs find the proxy.
func proxyEnv(addr string) []string {
	var env []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		env = append(env, name+"=http://"+addr)
	}
	return append(env, "NO_PROXY=127.0.0.1,localhost,::1", "no_proxy=127.0.0.1,localhost,::1")
}

// proxyVars are the variables of proxyEnv in an environment.
func proxyVars(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(e), "=")
		return !slices.Contains([]string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}, name)
	})
}

// replaceEnv sets variables, whatever was set before.
func replaceEnv(env, set []string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(out, set...)
}

// dial connects from the network of a lease, which resolves names too.
func (l *lease) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{}
	if l.slot == nil {
		return d.DialContext(ctx, network, addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if len(l.resolv.servers) > 0 {
			addr = net.JoinHostPort(l.resolv.servers[0], "53")
		}
		return l.dialFrom(ctx, network, addr)
	}}
	ips, err := r.LookupNetIP(ctx, "ip4", host) // the networks of steps have no other addresses
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ip := range ips {
		c, err := l.dialFrom(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// dialFrom connects to an address. It is one connection, which is made on the thread that has entered the network.
func (l *lease) dialFrom(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = inNS(l.slot.ns, func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
