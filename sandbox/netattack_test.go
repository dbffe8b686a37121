package sandbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/netguard"
)

// site is a machine with a router for steps, a neighbour on its eth0 (198.51.100.1 and .2) and two steps: one is attacked by the
// other, which may send whatever frames it likes, as steps with CAP_NET_RAW do.
type site struct {
	host, far     *os.File
	router        *router
	victim, thief *slot
	victimIP      netip.Addr
	thiefIP       netip.Addr
	callers       <-chan string
}

func newSite(t *testing.T, refused []netip.Prefix) *site {
	t.Helper()
	needRoot(t)
	s := &site{host: newHost(t)}
	s.callers, s.far = worldNS(t, s.host)
	s.start(t, refused)
	return s
}

// newHost makes the namespace of a machine that is not a router, whatever this one is.
func newHost(t *testing.T) *os.File {
	t.Helper()
	ns, err := newNS()
	if err != nil {
		t.Skip("no network namespaces:", err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := inNS(ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }); err != nil {
		t.Fatal(err)
	}
	return ns
}

// start makes the router and the steps.
func (s *site) start(t *testing.T, refused []netip.Prefix) {
	t.Helper()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(resolv, []byte("nameserver 127.0.0.53\n"), 0o644)
	fd, err := unix.Dup(int(s.host.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	// Parallel runs have other owners, and other networks of the same name.
	owner := fmt.Sprintf("%08x", uint32(os.Getpid())<<8|uint32(s.host.Fd())&0xff)
	s.router, err = newRouter(netip.MustParsePrefix("10.87.0.0/16"), owner, os.NewFile(uintptr(fd), "ns"), resolv, refused)
	if err != nil {
		t.Fatal(err)
	}
	s.victim, s.victimIP = s.step(t)
	s.thief, s.thiefIP = s.step(t)
	t.Cleanup(func() {
		s.victim.close()
		s.thief.close()
		s.router.close()
	})
}

func (s *site) step(t *testing.T) (*slot, netip.Addr) {
	t.Helper()
	slot, err := s.router.newSlot()
	if err != nil {
		t.Fatal(err)
	}
	h := handleAt(t, slot.ns)
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 {
		t.Fatal(addrs, err)
	}
	ip, _ := netip.AddrFromSlice(addrs[0].IP.To4())
	return slot, ip
}

func handleAt(t *testing.T, ns *os.File) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// wire is a socket for whole frames on the eth0 of a namespace.
type wire struct {
	fd  int
	mac net.HardwareAddr
}

func newWire(t *testing.T, ns *os.File) *wire {
	t.Helper()
	w := &wire{}
	err := inNS(ns, func() (err error) {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		w.mac = link.Attrs().HardwareAddr
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := unix.Write(w.fd, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
}

// frames returns what has come in.
func (w *wire) frames() (out [][]byte) {
	for {
		buf := make([]byte, 2048)
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			return out
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
			out = append(out, buf[:n])
		}
	}
}

func ether(dst, src net.HardwareAddr, kind uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), kind), body...)
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func arp(op uint16, mac net.HardwareAddr, ip netip.Addr, toMAC net.HardwareAddr, to netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, byte(op)}
	return append(append(append(append(b, mac...), ip.AsSlice()...), toMAC...), to.AsSlice()...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// udp is an IPv4 packet with a datagram.
func udp(src, dst netip.Addr, port uint16, text string) []byte {
	b := []byte{0x45, 0, 0, byte(28 + len(text)), 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	b = binary.BigEndian.AppendUint16(b, 9999)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	return append(append(b, 0, 0), text...)
}

// listen receives datagrams to a port in a namespace.
func listen(t *testing.T, ns *os.File, at string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	if err := inNS(ns, func() (err error) { c, err = net.ListenPacket("udp4", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// got returns the datagrams that have come in up to the one that says "end", which must come.
func got(t *testing.T, c net.PacketConn) []string {
	t.Helper()
	var out []string
	buf := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(20 * time.Second)) // a loss must fail the test
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatal("the datagram that is allowed did not come:", err)
		}
		if string(buf[:n]) == "end" {
			return out
		}
		out = append(out, fmt.Sprintf("%s from %s", buf[:n], from))
	}
}

// say sends a datagram from a namespace the usual way.
func say(ns *os.File, to, text string) error {
	return inNS(ns, func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
}

// call asks the world for its greeting.
func call(ns *os.File) (string, error) {
	var text []byte
	err := inNS(ns, func() error {
		c, err := net.DialTimeout("tcp4", "198.51.100.2:7777", 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 16)
		n, err := c.Read(buf)
		text = buf[:n]
		return err
	})
	return string(text), err
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A step said that the addresses of others are its own, and received their traffic.
func TestArpSpoofing(t *testing.T) {
	s := newSite(t, nil)
	evil, seen := newWire(t, s.thief.ns), newWire(t, s.victim.ns)
	if text, err := call(s.victim.ns); text != "hello" {
		t.Fatal(text, err) // and the machine knows the victim
	}
	seen.frames()
	gw := s.router.gateway
	for range 20 {
		for _, to := range []net.HardwareAddr{everybody, outerOf(t, s)} {
			evil.send(t, ether(to, evil.mac, unix.ETH_P_ARP, arp(2, evil.mac, s.victimIP, to, gw)))
			evil.send(t, ether(to, evil.mac, unix.ETH_P_ARP, arp(1, evil.mac, s.victimIP, to, gw)))
			evil.send(t, ether(to, evil.mac, unix.ETH_P_ARP, arp(2, evil.mac, s.victimIP, everybody, s.victimIP)))
			evil.send(t, ether(to, evil.mac, unix.ETH_P_ARP, arp(2, evil.mac, gw, everybody, gw)))
			evil.send(t, ether(to, evil.mac, unix.ETH_P_ARP, arp(2, evil.mac, addr("198.51.100.2"), everybody, addr("198.51.100.1"))))
			// And frames that seem to come from the victim, for tables of ports.
			evil.send(t, ether(to, seen.mac, unix.ETH_P_ARP, arp(2, seen.mac, s.victimIP, to, gw)))
		}
	}
	text, err := call(s.victim.ns)
	for _, f := range evil.frames() {
		if bytes.Contains(f, s.victimIP.AsSlice()) {
			t.Errorf("the other step received %x", f)
		}
	}
	if text != "hello" {
		t.Errorf("the victim is cut off: %q %v", text, err)
	}
	for _, f := range seen.frames() {
		if bytes.Equal(f[6:12], evil.mac) && !bytes.Equal(evil.mac, seen.mac) {
			t.Errorf("a frame of the other step came: %x", f)
		}
	}
	h := handleAt(t, s.host)
	defer h.Close()
	neighbours, err := h.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(s.victimIP.AsSlice()) && n.State != netlink.NUD_PERMANENT {
			t.Errorf("the machine can be told who the victim is: %v", n)
		}
	}
}

// outerOf is the hardware address of the machine, as the other step sees it.
func outerOf(t *testing.T, s *site) net.HardwareAddr {
	t.Helper()
	h := handleAt(t, s.thief.ns)
	defer h.Close()
	list, err := h.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if n.IP.Equal(s.router.gateway.AsSlice()) {
			return n.HardwareAddr
		}
	}
	t.Fatal("the step does not know its gateway")
	return nil
}

// Thousands of made-up neighbours fill the table of the machine, or that of a bridge, which then sends every frame to everybody.
func TestAddressFlooding(t *testing.T) {
	s := newSite(t, nil)
	evil := newWire(t, s.thief.ns)
	gw, to := s.router.gateway, outerOf(t, s)
	for i := range 4000 {
		mac := net.HardwareAddr{2, 9, 9, 9, byte(i >> 8), byte(i)}
		ip := netip.AddrFrom4([4]byte{gw.As4()[0], gw.As4()[1], gw.As4()[2], byte(2 + i%250)})
		evil.send(t, ether(everybody, mac, unix.ETH_P_ARP, arp(1, mac, ip, everybody, gw)))
		evil.send(t, ether(to, mac, unix.ETH_P_IP, udp(ip, gw, 5353, "x")))
	}
	evil.frames()
	if text, err := call(s.victim.ns); text != "hello" {
		t.Errorf("%q %v", text, err)
	}
	for _, f := range evil.frames() {
		if bytes.Contains(f, s.victimIP.AsSlice()) {
			t.Errorf("the other step received %x", f)
		}
	}
	h := handleAt(t, s.host)
	defer h.Close()
	if list, err := h.NeighList(0, netlink.FAMILY_V4); err != nil || len(list) > 8 {
		t.Errorf("the machine knows %d neighbours: %v", len(list), err)
	}
}

// Packets with the address of another step, or of nobody, went out.
func TestSourceSpoofing(t *testing.T) {
	s := newSite(t, nil)
	evil, to := newWire(t, s.thief.ns), outerOf(t, s)
	world, machine := listen(t, s.far, "198.51.100.2:5000"), listen(t, s.host, "0.0.0.0:5000")
	lies := []netip.Addr{
		s.victimIP, s.router.gateway, addr("198.51.100.2"), addr("198.51.100.1"), addr("127.0.0.1"), addr("0.0.0.0"), addr("8.8.8.8"),
		addr("255.255.255.255"), addr("224.0.0.1"),
	}
	for _, src := range lies {
		for _, dst := range []netip.Addr{addr("198.51.100.2"), s.router.gateway, addr("198.51.100.1"), addr("255.255.255.255")} {
			for _, mac := range []net.HardwareAddr{to, everybody} {
				evil.send(t, ether(mac, evil.mac, unix.ETH_P_IP, udp(src, dst, 5000, "lie of "+src.String())))
			}
		}
	}
	for _, dst := range []string{"198.51.100.2:5000", s.router.gateway.String() + ":5000"} {
		if err := say(s.thief.ns, dst, "end"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []net.PacketConn{world, machine} {
		if lies := got(t, c); len(lies) > 0 {
			t.Errorf("%s received %q", c.LocalAddr(), lies)
		}
	}
}

// Steps reached each other: by frames, through the machine, by broadcasts.
func TestStepsDoNotReachEachOther(t *testing.T) {
	s := newSite(t, nil)
	evil, to := newWire(t, s.thief.ns), outerOf(t, s)
	seen, in := newWire(t, s.victim.ns), listen(t, s.victim.ns, "0.0.0.0:5000")
	for _, mac := range []net.HardwareAddr{to, everybody, seen.mac} {
		for _, dst := range []netip.Addr{s.victimIP, lastAddr(s.router.subnet), addr("255.255.255.255"), addr("224.0.0.251")} {
			evil.send(t, ether(mac, evil.mac, unix.ETH_P_IP, udp(s.thiefIP, dst, 5000, "hi")))
		}
		evil.send(t, ether(mac, evil.mac, 0x88cc, make([]byte, 60)))          // LLDP
		evil.send(t, ether(mac, evil.mac, unix.ETH_P_IPV6, make([]byte, 60))) // nonsense
		evil.send(t, ether(mac, evil.mac, 0x8100, append([]byte{0, 1, 8, 0}, udp(s.thiefIP, s.victimIP, 5000, "vlan")...)))
	}
	_ = say(s.thief.ns, s.victimIP.String()+":5000", "hi")
	// The machine reaches both.
	if err := say(s.host, s.victimIP.String()+":5000", "end"); err != nil {
		t.Fatal(err)
	}
	if said := got(t, in); len(said) > 0 {
		t.Errorf("%q", said)
	}
	for _, f := range seen.frames() {
		if bytes.Contains(f, s.thiefIP.AsSlice()) || bytes.Equal(f[6:12], evil.mac) && !bytes.Equal(evil.mac, seen.mac) {
			t.Errorf("the victim received %x", f)
		}
	}
}

// Steps have no IPv6, and the machine listens to none of theirs: a router advertisement made a step its way out, and services of
// the machine that the firewall for IPv4 covers could be reached by link-local addresses.
func TestRouterAdvertisement(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("no IPv6")
	}
	s := newSite(t, nil)
	evil := newWire(t, s.thief.ns)
	evil.frames()
	from, all := addr("fe80::bad"), addr("ff02::1")
	multicast := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	advert := []byte{134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	advert = append(append(advert, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0), addr("2001:db8::").AsSlice()...)
	for range 3 {
		evil.send(t, ether(multicast, evil.mac, unix.ETH_P_IPV6, icmp6(from, all, 255, advert)))
		evil.send(t, ether(multicast, evil.mac, unix.ETH_P_IPV6, icmp6(from, all, 255, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, "echo"...))))
	}
	if text, err := call(s.thief.ns); text != "hello" { // what came before has been dealt with
		t.Fatal(text, err)
	}
	h := handleAt(t, s.host)
	defer h.Close()
	routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err == nil && strings.HasPrefix(link.Attrs().Name, anyPort) {
			t.Errorf("the machine has an IPv6 route to steps: %v", r)
		}
	}
	for _, f := range evil.frames() {
		if binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 {
			t.Errorf("the machine speaks IPv6 with steps: %x", f)
		}
	}
}

// icmp6 is an IPv6 packet with a message, whose checksum is set.
func icmp6(src, dst netip.Addr, hops byte, msg []byte) []byte {
	if len(msg)%2 == 1 {
		msg = append(msg, 0)
	}
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(msg)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(msg[2:], checksum(append(pseudo, msg...)))
	head := []byte{0x60, 0, 0, 0, 0, byte(len(msg)), 58, hops}
	return append(append(append(head, src.AsSlice()...), dst.AsSlice()...), msg...)
}

// Where route_localnet is on, as Kubernetes has it, the machine's services on 127.0.0.1 answered steps.
func TestLoopbackOfTheMachine(t *testing.T) {
	s := newSite(t, nil)
	err := inNS(s.host, func() error {
		for _, i := range []string{"all", portName(s.router.owner, s.thiefIP)} {
			if err := os.WriteFile(ipv4Conf+i+"/route_localnet", []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	machine := listen(t, s.host, "0.0.0.0:5000")
	evil, to := newWire(t, s.thief.ns), outerOf(t, s)
	for _, dst := range []string{"127.0.0.1", "127.1.2.3"} {
		evil.send(t, ether(to, evil.mac, unix.ETH_P_IP, udp(s.thiefIP, addr(dst), 5000, "to "+dst)))
	}
	if err := say(s.thief.ns, s.router.gateway.String()+":5000", "end"); err != nil {
		t.Fatal(err)
	}
	if said := got(t, machine); len(said) > 0 {
		t.Errorf("%q", said)
	}
}

// Steps of other people's builds read the machine's credentials from the cloud's metadata service.
func TestMetadataService(t *testing.T) {
	for _, refused := range []bool{true, false} {
		var list []netip.Prefix
		if refused {
			list = netguard.Metadata()
		}
		s := newSite(t, list)
		services := []string{"169.254.169.254", "100.100.100.200"}
		for _, ip := range services {
			far, near := handleAt(t, s.far), handleAt(t, s.host)
			link, err := far.LinkByName("eth0")
			out, err2 := near.LinkByName("eth0")
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			err = errors.Join(far.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr(ip), 32)}),
				near.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Dst: ipNet(addr(ip), 32), Gw: net.ParseIP("198.51.100.2")}))
			if err != nil {
				t.Fatal(err)
			}
			far.Close()
			near.Close()
		}
		world, evil, to := listen(t, s.far, "0.0.0.0:5000"), newWire(t, s.thief.ns), outerOf(t, s)
		for _, ip := range services {
			err := say(s.thief.ns, ip+":5000", "secret of "+ip)
			if refused != errors.Is(err, syscall.EACCES) {
				t.Errorf("refused %v: %s: %v", refused, ip, err)
			}
			evil.send(t, ether(to, evil.mac, unix.ETH_P_IP, udp(s.thiefIP, addr(ip), 5000, "frame to "+ip)))
		}
		if err := say(s.thief.ns, "198.51.100.2:5000", "end"); err != nil {
			t.Fatal(err)
		}
		if said := got(t, world); refused && len(said) > 0 || !refused && len(said) != 4 {
			t.Errorf("refused %v: %q", refused, said)
		}
	}
}

// The machine of a builder became a router: what its neighbours sent went on to its other networks.
func TestMachineIsNoRouter(t *testing.T) {
	needRoot(t)
	s := &site{host: newHost(t)}
	s.callers, s.far = worldNS(t, s.host)
	other := join(t, s.host, "eth1", "203.0.113.1", "203.0.113.2") // a network of the machine's, with another machine
	if err := route(t, s.far, "203.0.113.0/24", "198.51.100.1"); err != nil {
		t.Fatal(err)
	}
	s.start(t, nil)
	late := join(t, s.host, "eth2", "192.0.2.1", "192.0.2.2") // an interface that comes later
	if err := errors.Join(route(t, s.far, "192.0.2.0/24", "198.51.100.1"), route(t, s.far, s.router.subnet.String(), "198.51.100.1")); err != nil {
		t.Fatal(err)
	}
	in, in2, in3 := listen(t, other, "203.0.113.2:5000"), listen(t, late, "192.0.2.2:5000"), listen(t, s.victim.ns, "0.0.0.0:5000")
	gateway := listen(t, s.host, s.router.gateway.String()+":5000")
	for _, dst := range []string{"203.0.113.2", "192.0.2.2", s.victimIP.String(), s.router.gateway.String()} {
		if err := say(s.far, dst+":5000", "routed"); err != nil {
			t.Fatal(dst, err)
		}
	}
	eventually(t, "the interface that came later forwards", func() bool { return forwards(s.host, "eth2") })
	// Steps reach all of these networks.
	for _, dst := range []string{"203.0.113.2", "192.0.2.2"} {
		if err := say(s.thief.ns, dst+":5000", "end"); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(say(s.host, s.victimIP.String()+":5000", "end"), say(s.thief.ns, s.router.gateway.String()+":5000", "end")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.PacketConn{in, in2, in3, gateway} {
		if said := got(t, c); len(said) > 0 {
			t.Errorf("%s received %q", c.LocalAddr(), said)
		}
	}
	if text, err := call(s.victim.ns); text != "hello" {
		t.Errorf("%q %v", text, err)
	}
	on := func(name string) (yes bool) {
		_ = inNS(s.host, func() error { yes = isOn(name); return nil })
		return yes
	}
	if on("all") {
		t.Error("ip_forward is on for all")
	}
	// A program that wants a router turns it on for all. The next interface that it makes lets us know.
	if err := inNS(s.host, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	join(t, s.host, "docker0", "172.31.0.1", "172.31.0.2")
	eventually(t, "the rule goes", func() bool { return !hasTable(s.host, forwardName) })
	if err := errors.Join(say(s.far, "203.0.113.2:5000", "routed"), say(s.thief.ns, "203.0.113.2:5000", "end")); err != nil {
		t.Fatal(err)
	}
	if said := got(t, in); len(said) != 1 {
		t.Errorf("%q", said)
	}
}

// What Strata turned on is off again when the last one ends, and what it did not turn on stays.
func TestForwardingIsPutBack(t *testing.T) {
	needRoot(t)
	host := newHost(t)
	worldNS(t, host)
	join(t, host, "eth1", "203.0.113.1", "203.0.113.2")
	in := func(f func() error) {
		t.Helper()
		if err := inNS(host, f); err != nil {
			t.Error(err)
		}
	}
	in(func() error { return forwardOn("eth1") }) // the operator's
	start := func(owner string) *router {
		t.Helper()
		fd, _ := unix.Dup(int(host.Fd()))
		r, err := newRouter(netip.MustParsePrefix("10.87.0.0/16"), owner, os.NewFile(uintptr(fd), "ns"), "/dev/null", nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a, b := start("aaaaaaaa"), start("bbbbbbbb")
	a.close()
	in(func() error {
		if !isOn("eth0") || !isOn("eth1") || !hasTable(host, forwardName) || hasTable(host, tableName("aaaaaaaa")) {
			t.Error("one that is left lacks what it needs, or has more")
		}
		return nil
	})
	b.close()
	in(func() error {
		if isOn("eth0") || !isOn("eth1") || isOn("all") || hasTable(host, forwardName) || hasTable(host, tableName("bbbbbbbb")) {
			t.Error("something is left")
		}
		if _, err := os.Stat(stateFile()); err == nil {
			t.Error("the list of interfaces is left")
		}
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, anyPort) {
				t.Errorf("%s is left", l.Attrs().Name)
			}
		}
		return err
	})
}

// hasTable reports whether the firewall of a namespace has a table, or a chain, of a name.
func hasTable(ns *os.File, name string) (yes bool) {
	_ = inNS(ns, func() error {
		_, err := firewall("", "nft", "list", "table", "ip", name)
		_, err2 := firewall("", "iptables", "-S", name)
		yes = err == nil || err2 == nil
		return nil
	})
	return yes
}

// eventually waits for something that happens in the background.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("did not happen:", what)
		}
	}
}

// join connects a new namespace to one, by an interface of a name.
func join(t *testing.T, ns *os.File, name, near, far string) *os.File {
	t.Helper()
	there, err := newNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	h := handleAt(t, ns)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(there.Fd())}); err != nil {
		t.Fatal(err)
	}
	up := func(link, ip string) func() error {
		return func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr(ip), 24)}), netlink.LinkSetUp(l))
		}
	}
	if err := errors.Join(inNS(ns, up(name, near)), inNS(there, up("eth0", far)), route(t, there, "0.0.0.0/0", near)); err != nil {
		t.Fatal(err)
	}
	return there
}

func route(t *testing.T, ns *os.File, to, by string) error {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	h := handleAt(t, ns)
	defer h.Close()
	return h.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(by)})
}

// With iptables alone the firewall is the same.
func TestFirewallOfIptables(t *testing.T) {
	needRoot(t)
	bin := t.TempDir()
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		os.Symlink(path, filepath.Join(bin, name))
	}
	t.Setenv("PATH", bin)
	for _, attack := range []func(*testing.T){TestArpSpoofing, TestAddressFlooding, TestSourceSpoofing, TestStepsDoNotReachEachOther, TestLoopbackOfTheMachine, TestMetadataService} {
		attack(t)
	}
	t.Run("router", TestMachineIsNoRouter)
	host := newHost(t)
	fd, _ := unix.Dup(int(host.Fd()))
	worldNS(t, host)
	before, after := "", ""
	list := func(to *string) func() error {
		return func() (err error) {
			*to, err = firewall("", "iptables", "-S")
			return err
		}
	}
	if err := inNS(host, list(&before)); err != nil {
		t.Fatal(err)
	}
	r, err := newRouter(netip.MustParsePrefix("10.87.0.0/16"), "cccccccc", os.NewFile(uintptr(fd), "ns"), "/dev/null", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	if err := inNS(host, list(&after)); err != nil || before != after {
		t.Errorf("%v\n%s\n%s", err, before, after)
	}
}

// A network that does not exist sends nothing, questions for names included.
func TestNoNetworkSendsNothing(t *testing.T) { both(t, testNoNetworkSendsNothing) }

func testNoNetworkSendsNothing(t *testing.T, b *box) {
	out, _ := b.sh(t, "exec 2>&1; "+strings.Join([]string{ // one stream, so that the order is kept
		"nslookup example.com", "nc -w 1 198.51.100.2 80 </dev/null", "nc -w 1 169.254.169.254 80 </dev/null", "nslookup example.com 8.8.8.8",
		"echo -n devices:", "for i in /sys/class/net/*; do echo -n \" ${i##*/}\"; done; echo", "echo -n sent:", "cat /proc/net/dev",
	}, "; "), nil)
	if !strings.Contains(out, "devices: lo\n") && !strings.Contains(out, "devices: *\n") {
		t.Errorf("there are other interfaces: %q", out)
	}
	_, counters, _ := strings.Cut(out, "sent:")
	lines := strings.Split(strings.TrimSpace(counters), "\n")
	if n := len(lines); n != 3 || !strings.Contains(lines[n-1], "lo:") { // two lines are the table's head
		t.Errorf("%q", counters)
	}
	if !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool { return strings.Contains(l, "nreachable") }) {
		t.Errorf("nothing says that there is no network: %q", out)
	}
}

// One step, or several of one client, asked so many questions at once that the names of others were not resolved.
func TestNameFlood(t *testing.T) {
	f := &forwarder{from: map[netip.Addr][]*question{}}
	step := func(i int) net.Addr {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1))
	}
	ask := func(from net.Addr, n int) (asked []context.Context, ends []func()) {
		for range n {
			if ctx, done := f.enter(from); ctx != nil {
				asked, ends = append(asked, ctx), append(ends, done)
			}
		}
		return asked, ends
	}
	thief, ends := ask(step(1), dnsAtOnce)
	if len(thief) != dnsOfOne {
		t.Errorf("%d questions of one step are under way", len(thief))
	}
	for i := 2; f.asked < dnsAtOnce; i++ { // more steps of the same client
		_, more := ask(step(i), dnsOfOne)
		ends = append(ends, more...)
	}
	victim, theirs := ask(step(100), 1)
	if len(victim) != 1 {
		t.Fatal("another step gets no answer")
	}
	if f.asked != dnsAtOnce {
		t.Errorf("%d questions are under way", f.asked)
	}
	more, last := ask(step(100), dnsAtOnce)
	if n := 1 + len(more); n < dnsAtOnce/(dnsAtOnce/dnsOfOne+1) || n > dnsOfOne || f.asked != dnsAtOnce {
		t.Errorf("the other step has %d of %d places", n, f.asked)
	}
	if victim[0].Err() != nil || thief[0].Err() == nil {
		t.Error("the wrong question lost its place")
	}
	for _, end := range slices.Concat(ends, theirs, last) {
		end()
	}
	if f.asked != 0 || len(f.from) != 0 {
		t.Errorf("after the last answer %d questions of %d steps are under way", f.asked, len(f.from))
	}
	if again, _ := ask(step(1), 1); len(again) != 1 {
		t.Error("a step that has its answers gets no more")
	}
}
