package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridge connects the network namespaces of steps to the outside: a Linux bridge with the first address of a /24, IPv4 forwarding
// and masquerading. Its ports are isolated: steps reach the world and this machine, not each other.
type bridge struct {
	owner   string
	name    string
	subnet  netip.Prefix
	gateway netip.Addr
	hostNS  *os.File
	h       *netlink.Handle
	link    netlink.Link
	mtu     int
	nat     *nat
	dns     *forwarder // nil = port 53 of the gateway is taken

	mu    sync.Mutex
	used  map[netip.Addr]bool
	ports int
}

// bridgeName and portPrefix hold the owner, eight hex digits; interface names have at most 15 bytes.
func bridgeName(owner string) string { return "strata-" + owner }
func portPrefix(owner string) string { return "s" + owner }

// newBridge makes the bridge in the namespace hostNS, in place of one that this owner left.
func newBridge(pool netip.Prefix, owner string, hostNS *os.File, resolv string) (_ *bridge, err error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(hostNS.Fd()), 0)
	if err != nil {
		return nil, err
	}
	b := &bridge{owner: owner, name: bridgeName(owner), hostNS: hostNS, h: h, used: map[netip.Addr]bool{}}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if old, err := h.LinkByName(b.name); err == nil {
		h.LinkDel(old)
	}
	if b.subnet, b.mtu, err = b.chooseSubnet(pool, owner); err != nil {
		return nil, err
	}
	b.gateway = b.subnet.Addr().Next()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = b.name, b.mtu
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("add the bridge %s: %w", b.name, err)
	}
	if b.link, err = h.LinkByName(b.name); err != nil {
		return nil, err
	}
	if err := h.AddrAdd(b.link, &netlink.Addr{IPNet: ipNet(b.gateway, 24)}); err != nil {
		return nil, fmt.Errorf("address of the bridge: %w", err)
	}
	if err := h.LinkSetUp(b.link); err != nil {
		return nil, fmt.Errorf("start the bridge: %w", err)
	}
	err = inNS(hostNS, func() (err error) {
		if b.nat, err = newNAT(owner, b.name, b.subnet); err != nil {
			return err
		}
		b.dns, _ = newForwarder(b.gateway, resolv)
		return nil
	})
	return b, err
}

// nameserver is what a step asks if it cannot reach the host's name servers: the forwarder, or a public one.
func (b *bridge) nameserver() string {
	if b.dns == nil {
		return fallbackDNS
	}
	return b.gateway.String()
}

// chooseSubnet finds a /24 that no route of the host overlaps with, and the MTU of the way out. Each owner starts to look
// somewhere else.
func (b *bridge) chooseSubnet(pool netip.Prefix, owner string) (netip.Prefix, int, error) {
	routes, err := b.h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, 0, err
	}
	mtu := 1500
	var taken []netip.Prefix
	for _, r := range routes {
		ones := 0
		if r.Dst != nil {
			ones, _ = r.Dst.Mask.Size()
		}
		if ones == 0 {
			if out, err := b.h.LinkByIndex(r.LinkIndex); err == nil {
				mtu = out.Attrs().MTU
			}
			continue
		}
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			taken = append(taken, netip.PrefixFrom(ip, ones))
		}
	}
	p, err := freeSubnet(pool, owner, taken)
	return p, mtu, err
}

// freeSubnet chooses a /24 of pool that overlaps with nothing that is taken.
func freeSubnet(pool netip.Prefix, owner string, taken []netip.Prefix) (netip.Prefix, error) {
	sum := fnv.New32a()
	sum.Write([]byte(owner))
	count := uint32(1) << (24 - pool.Bits())
	base := binary.BigEndian.Uint32(pool.Masked().Addr().AsSlice())
	for i := range count {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], base+(sum.Sum32()+i)%count<<8)
		p := netip.PrefixFrom(netip.AddrFrom4(ip), 24)
		free := true
		for _, t := range taken {
			free = free && !t.Overlaps(p)
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free network in %s", pool)
}

func ipNet(ip netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// takeAddr reserves an address of the subnet; the first is the gateway's, the last the broadcast's.
func (b *bridge) takeAddr() (netip.Addr, int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ip := b.gateway.Next()
	for range 253 {
		if !b.used[ip] {
			b.used[ip] = true
			b.ports++
			return ip, b.ports, nil
		}
		ip = ip.Next()
	}
	return netip.Addr{}, 0, errors.New("all addresses of the build network are in use")
}

func (b *bridge) freeAddr(ip netip.Addr) {
	b.mu.Lock()
	delete(b.used, ip)
	b.mu.Unlock()
}

// newSlot makes a network namespace with eth0 on the bridge.
func (b *bridge) newSlot() (_ *slot, err error) {
	ip, port, err := b.takeAddr()
	if err != nil {
		return nil, err
	}
	ns, err := newNS()
	if err != nil {
		b.freeAddr(ip)
		return nil, err
	}
	s := &slot{ns: ns, onEnd: func() { b.freeAddr(ip) }}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	name, err := b.addPort(ns, port)
	if err != nil {
		return nil, fmt.Errorf("add a veth pair: %w", err)
	}
	outer, err := b.h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.h.LinkSetIsolated(outer, true), b.h.LinkSetUp(outer)); err != nil {
		return nil, fmt.Errorf("start the port of the bridge: %w", err)
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), 0)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	inner, err := in.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(in.AddrAdd(inner, &netlink.Addr{IPNet: ipNet(ip, 24)}), in.LinkSetUp(inner)); err != nil {
		return nil, fmt.Errorf("start eth0: %w", err)
	}
	return s, in.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Gw: b.gateway.AsSlice()})
}

// addPort makes a veth pair between the bridge and a namespace and returns the name of its outer end. The kernel takes the
// ports of a process that ended away some time later, so that a name may still be in use: then the next is tried.
func (b *bridge) addPort(ns *os.File, port int) (string, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.MTU, attrs.MasterIndex = b.mtu, b.link.Attrs().Index
	for try := 0; ; try++ {
		attrs.Name = fmt.Sprintf("%s%x", portPrefix(b.owner), port&0xffffff)
		err := b.h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()), PeerMTU: uint32(b.mtu)})
		if !errors.Is(err, unix.EEXIST) || try == 1000 {
			return attrs.Name, err
		}
		b.mu.Lock()
		b.ports++
		port = b.ports
		b.mu.Unlock()
	}
}

// close removes what newBridge made.
func (b *bridge) close() {
	if b.dns != nil {
		b.dns.close()
	}
	if b.nat != nil {
		inNS(b.hostNS, b.nat.remove)
	}
	if b.link != nil {
		b.h.LinkDel(b.link)
	}
	b.h.Close()
	b.hostNS.Close()
}

// sweepLinks removes the bridge and the ports that a dead owner left in this thread's namespace.
func sweepLinks(owner string) error {
	link, err := netlink.LinkByName(bridgeName(owner))
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil // the ports go with the namespaces, which go with their process
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}
