package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// router connects the network namespaces of steps to the outside. Each has a link of its own with this machine, a veth pair, and
// this machine routes and masquerades: there is no network that steps share, on which they could answer for each other. A step can
// send with its own address only, which is that of its link.
//
// The gateway's address is on a veth pair too. Its other end is in a namespace that nothing but this process holds, so that the
// kernel removes every link when the process ends, however it ends.
type router struct {
	owner   string
	name    string // of the gateway's link
	subnet  netip.Prefix
	gateway netip.Addr
	hostNS  *os.File
	holder  *os.File // the namespace of the gateway's other end
	h       *netlink.Handle
	link    netlink.Link
	mtu     int
	nat     *nat
	forward *forwarding
	dns     *forwarder // nil = port 53 of the gateway is taken
	spare   []*os.File // descriptors for close, which runs programs

	mu   sync.Mutex
	used map[netip.Addr]bool
	last netip.Addr // that was given out
}

// Interface names have at most 15 bytes. All begin with anyPort; the owner has eight hex digits.
const anyPort = "stra"

func gatewayName(owner string) string { return "strata-" + owner }
func portPrefix(owner string) string  { return anyPort + owner }

// portName is the name of the link of an address: the firewall knows which address may come from which link.
func portName(owner string, ip netip.Addr) string {
	return fmt.Sprintf("%s%02x", portPrefix(owner), ip.As4()[3])
}

// newRouter makes the gateway in the namespace hostNS, in place of one that this owner left. Refused are destinations that no step
// may reach.
func newRouter(pool netip.Prefix, owner string, hostNS *os.File, resolv string, refused []netip.Prefix) (_ *router, err error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(hostNS.Fd()), 0)
	if err != nil {
		return nil, err
	}
	b := &router{owner: owner, name: gatewayName(owner), hostNS: hostNS, h: h, used: map[netip.Addr]bool{}}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if err := b.reserve(); err != nil {
		return nil, err
	}
	if err := sweepLinks(h, owner); err != nil {
		return nil, err
	}
	if b.subnet, b.mtu, err = b.chooseSubnet(pool, owner); err != nil {
		return nil, err
	}
	b.gateway = b.subnet.Addr().Next()
	b.last = b.gateway
	if b.holder, err = newNS(); err != nil {
		return nil, err
	}
	if err := b.pair(b.name, b.holder); err != nil {
		return nil, fmt.Errorf("add the gateway %s: %w", b.name, err)
	}
	if b.link, err = h.LinkByName(b.name); err != nil {
		return nil, err
	}
	err = inNS(hostNS, func() (err error) {
		if err := quiet(b.name); err != nil {
			return err
		}
		if err := errors.Join(h.AddrAdd(b.link, &netlink.Addr{IPNet: ipNet(b.gateway, 24)}), h.LinkSetUp(b.link)); err != nil {
			return fmt.Errorf("start the gateway: %w", err)
		}
		if b.nat, err = newNAT(owner, b.subnet, refused); err != nil {
			return err
		}
		if b.forward, err = newForwarding(hostNS, owner); err != nil {
			return err
		}
		b.dns, _ = newForwarder(b.gateway, resolv)
		return nil
	})
	return b, err
}

// pair adds a veth pair between this machine and the eth0 of a namespace. A link that is named twice is unix.EEXIST.
func (b *router) pair(name string, ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, b.mtu, outerMAC
	return b.h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()), PeerMTU: uint32(b.mtu), PeerHardwareAddr: innerMAC,
	})
}

// The hardware addresses of the ends of every pair. Nobody asks for them: the neighbours of a link are known and do not change.
var (
	outerMAC = net.HardwareAddr{0x02, 's', 't', 'r', 'a', 1}
	innerMAC = net.HardwareAddr{0x02, 's', 't', 'r', 'a', 2}
)

// quiet turns off what a link of this thread's namespace does besides IPv4: IPv6 has no firewall here, and no step may advertise
// routes to this machine.
func quiet(link string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		err = nil
	}
	return err
}

// nameserver is what a step asks if it cannot reach the host's name servers: the forwarder, or a public one.
func (b *router) nameserver() string {
	if b.dns == nil {
		return fallbackDNS
	}
	return b.gateway.String()
}

// chooseSubnet finds a /24 that no route of the host overlaps with, and the MTU of the way out. Each owner starts to look
// somewhere else.
func (b *router) chooseSubnet(pool netip.Prefix, owner string) (netip.Prefix, int, error) {
	routes, err := wholeList(func() ([]netlink.Route, error) { return b.h.RouteList(nil, netlink.FAMILY_V4) })
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

// takeAddr reserves an address of the subnet; the first is the gateway's, the last the broadcast's. Addresses are given out in
// turn, because the kernel removes links some time after their namespaces.
func (b *router) takeAddr() (netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range 254 {
		if b.last = b.last.Next(); b.last.As4()[3] == 255 {
			b.last = b.gateway.Next()
		}
		if !b.used[b.last] {
			b.used[b.last] = true
			return b.last, nil
		}
	}
	return netip.Addr{}, errors.New("all addresses of the build network are in use")
}

func (b *router) freeAddr(ip netip.Addr) {
	b.mu.Lock()
	delete(b.used, ip)
	b.mu.Unlock()
}

// newSlot makes a network namespace with an eth0 that leads to this machine.
func (b *router) newSlot() (_ *slot, err error) {
	ns, err := newNS()
	if err != nil {
		return nil, err
	}
	s := &slot{ns: ns}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	ip, err := b.addPort(ns)
	if err != nil {
		return nil, fmt.Errorf("add a veth pair: %w", err)
	}
	s.onEnd = func() { b.freeAddr(ip) }
	if err := b.startOuter(ip); err != nil {
		return nil, fmt.Errorf("start the outer end of a veth pair: %w", err)
	}
	if err := b.startInner(ns, ip); err != nil {
		return nil, fmt.Errorf("start eth0: %w", err)
	}
	return s, prohibit(ns, b.nat.refused)
}

// addPort makes a veth pair to a namespace and returns the address that it is for. The link of an earlier namespace of the same
// address may still be there: then the next address is tried.
func (b *router) addPort(ns *os.File) (netip.Addr, error) {
	for try := 0; ; try++ {
		ip, err := b.takeAddr()
		if err != nil {
			return ip, err
		}
		if err = b.pair(portName(b.owner, ip), ns); err == nil {
			return ip, nil
		}
		b.freeAddr(ip)
		if !errors.Is(err, unix.EEXIST) || try == 1000 {
			return ip, err
		}
	}
}

// startOuter makes this machine route an address, and nothing else, to its link. It does not speak ARP there: a step could fill the
// table of neighbours.
func (b *router) startOuter(ip netip.Addr) error {
	name := portName(b.owner, ip)
	link, err := b.h.LinkByName(name)
	if err != nil {
		return err
	}
	err = inNS(b.hostNS, func() error { return errors.Join(quiet(name), forwardOn(name)) })
	if err := errors.Join(err, b.h.LinkSetARPOff(link), b.h.LinkSetUp(link)); err != nil {
		return err
	}
	index := link.Attrs().Index
	return errors.Join(
		b.h.NeighAdd(neighbour(index, ip, innerMAC)),
		b.h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(ip, 32), Src: b.gateway.AsSlice(), Scope: netlink.SCOPE_LINK}))
}

func (b *router) startInner(ns *os.File, ip netip.Addr) error {
	in, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), 0)
	if err != nil {
		return err
	}
	defer in.Close()
	link, err := in.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := errors.Join(in.AddrAdd(link, &netlink.Addr{IPNet: ipNet(ip, 32)}), in.LinkSetUp(link)); err != nil {
		return err
	}
	index := link.Attrs().Index
	return errors.Join(
		in.NeighAdd(neighbour(index, b.gateway, outerMAC)),
		in.RouteAdd(&netlink.Route{LinkIndex: index, Gw: b.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
}

func neighbour(link int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

// prohibit lets connections from a namespace to destinations fail at once.
func prohibit(ns *os.File, to []netip.Prefix) error {
	if len(to) == 0 {
		return nil
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), 0)
	if err != nil {
		return err
	}
	defer in.Close()
	for _, p := range to {
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		err := in.RouteReplace(&netlink.Route{Dst: dst, Type: unix.RTN_PROHIBIT})
		if p.Addr().Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES)) { // no IPv6 there
			continue
		}
		if err != nil {
			return fmt.Errorf("prohibit %s: %w", p, err)
		}
	}
	return nil
}

// close removes what newRouter made.
// spares is how many descriptors close needs: for a firewall's tool, its pipes, and the kernel's answers.
const spares = 16

// reserve takes the descriptors that close will need: a process that has used up its limit still removes its rules.
func (b *router) reserve() error {
	for range spares {
		f, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		b.spare = append(b.spare, f)
	}
	return nil
}

func (b *router) close() {
	for _, f := range b.spare {
		f.Close()
	}
	if b.dns != nil {
		b.dns.close()
	}
	_ = inNS(b.hostNS, func() error { // what stays is found by the next one
		if b.nat != nil {
			b.nat.remove()
		}
		if b.link != nil {
			_ = b.h.LinkDel(b.link)
		}
		if b.forward != nil {
			b.forward.close()
		}
		return nil
	})
	if b.holder != nil {
		b.holder.Close()
	}
	b.h.Close()
	b.hostNS.Close()
}

// sweepLinks removes the gateway and the ports of an owner. Those of a process that ended go by themselves, some time later.
func sweepLinks(h *netlink.Handle, owner string) error {
	links, err := wholeList(h.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		if name := l.Attrs().Name; name == gatewayName(owner) || strings.HasPrefix(name, portPrefix(owner)) {
			if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
	}
	return nil
}
