package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestExit(t *testing.T) { both(t, testExit) }

func testExit(t *testing.T, b *box) {
	if out, exit := b.sh(t, "echo hello; exit 3", nil); out != "hello\n" || exit.Code != 3 {
		t.Errorf("%q %+v", out, exit)
	}
	if _, exit := b.sh(t, "sh -c 'kill -9 $$'; exit $?", nil); exit.Code != 137 || exit.Signal != syscall.SIGKILL || exit.OOMKilled {
		t.Errorf("%+v", exit)
	}
	// A process in the background neither holds the step up nor outlives it.
	if _, exit := b.sh(t, "sleep 1000 & exit 0", nil); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	for _, args := range [][]string{{"nosuch"}, {"/bin/nosuch"}, {"/etc/passwd"}} {
		_, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: args, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone})
		if diag.KindOf(err) != diag.Failed || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%q: %v", args, err)
		}
	}
	noLeaks(t, b)
	fds := func() int { n, _ := os.ReadDir("/proc/self/fd"); return len(n) }
	before := fds()
	for range 3 {
		b.sh(t, "true", func(s *Spec) { s.Mounts = []Mount{{Type: Data, Target: "/x"}} })
	}
	if after := fds(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// The child sees three descriptors, its own environment, no inheritable capabilities, and a filter.
func TestConfinement(t *testing.T) { both(t, testConfinement) }

func testConfinement(t *testing.T, b *box) {
	t.Setenv("STRATA_CANARY", "daemon")
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0) // as a library that forgets O_CLOEXEC
	out, _ := b.sh(t, "env; echo --; ls /proc/self/fd; echo --; grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; echo --; cat /proc/self/cgroup; hostname; ls /proc/acpi /sys/firmware; mount -t tmpfs x /tmp 2>/dev/null || echo denied", nil)
	parts := strings.Split(out, "--\n")
	if env := parts[0]; strings.Contains(env, "STRATA_CANARY") || !strings.Contains(env, "HOME=/root\n") || !strings.Contains(env, "PATH=/bin\n") {
		t.Errorf("environment %q", env)
	}
	if parts[1] != "0\n1\n2\n3\n" { // 3 is the directory that ls reads
		t.Errorf("descriptors %q", parts[1])
	}
	for _, want := range []string{"CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2"} {
		if !strings.Contains(parts[2], want) {
			t.Errorf("no %q in %q", want, parts[2])
		}
	}
	if strings.Contains(parts[3], "strata-") || !strings.Contains(parts[3], DefaultHostname) || !strings.Contains(parts[3], "denied") {
		t.Errorf("control groups and masks %q", parts[3])
	}
	insecure := func(s *Spec) { s.Security = graph.SecurityInsecure }
	if out, exit := b.sh(t, "mount -t tmpfs x /tmp && grep -E '^Seccomp:' /proc/self/status", insecure); exit.Code != 0 || !strings.Contains(out, "Seccomp:\t0") {
		t.Errorf("%q %+v", out, exit)
	}
	noLeaks(t, b)
}

func TestUserAndCwd(t *testing.T) { both(t, testUserAndCwd) }

func testUserAndCwd(t *testing.T, b *box) {
	for user, want := range map[string]string{
		"": "0 0 0 10 /root", "app": "1000 1001 1001 10 44 /home/app", "1000": "1000 1001 1001 10 44 /home/app", "1000:1000": "1000 1000 1000 /home/app", "55": "55 0 0 /",
	} {
		out, _ := b.sh(t, "echo $(id -u) $(id -g) $(id -G) $HOME", func(s *Spec) { s.User = user })
		if strings.TrimSpace(out) != want {
			t.Errorf("user %q: %q, want %q", user, out, want)
		}
	}
	os.Symlink("/var/lib", filepath.Join(b.rootfs, "lib-link"))
	out, _ := b.sh(t, "pwd; stat -c '%a %u %g' . ; stat -c '%n %a' /var/lib", func(s *Spec) { s.Cwd, s.User = "/lib-link/../lib/new", "app" })
	if !strings.HasPrefix(out, "/lib/new\n755 1000 1001\n") && !strings.HasPrefix(out, "/lib-link/../lib/new\n755 1000 1001\n") && !strings.HasPrefix(out, "/var/lib/new\n") {
		t.Errorf("%q", out)
	}
	for _, cwd := range []string{"/proc/self/fd/7", "/proc/1/root"} {
		spec := &Spec{RootFS: b.rootfs, Args: []string{"/bin/ls", "-a"}, Cwd: cwd, Network: graph.NetworkNone}
		var out bytes.Buffer
		spec.Stdout = &out
		if exit, err := b.Run(t.Context(), spec); err == nil && exit.Code == 0 && strings.Contains(out.String(), "boot") {
			t.Errorf("%s shows the host: %q", cwd, out.String())
		}
	}
	if left, _ := os.ReadDir(filepath.Join(b.rootfs, "proc")); len(left) > 0 {
		t.Errorf("made below /proc: %v", left)
	}
	noLeaks(t, b)
}

func TestMounts(t *testing.T) { both(t, testMounts) }

func testMounts(t *testing.T, b *box) {
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "f"), []byte("from the host"), 0o644)
	f, err := OpenInRoot(src, "f", unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Rename(filepath.Join(src, "f"), filepath.Join(src, "old")) // from now on the name leads elsewhere, and the open file must be mounted all the same
	os.Symlink("/etc/passwd", filepath.Join(src, "f"))
	os.WriteFile(filepath.Join(src, "g"), []byte("from the host"), 0o644)
	mounts := func(s *Spec) {
		s.Mounts = []Mount{
			{Type: Bind, Source: src, Target: "/new/dir", ReadOnly: true},
			{Type: Bind, Source: src, Target: "/rw"},
			{Type: Bind, File: f, Target: "/files/one", ReadOnly: true},
			{Type: Tmpfs, Target: "/scratch", Size: 1 << 20},
			{Type: Data, Target: "/run/secrets/key", Data: []byte("hush"), UID: 5, GID: 6, Mode: 0o440},
		}
		s.Limits.ShmSize = 2 << 20
	}
	out, exit := b.sh(t, `cat /new/dir/g /files/one; touch /new/dir/x 2>/dev/null || echo ro; echo y >/rw/y; cat /run/secrets/key; stat -c '%a %u %g' /run/secrets/key
grep -E ' (/scratch|/dev/shm|/etc/hosts|/run/secrets/key) ' /proc/mounts; dd if=/dev/zero of=/scratch/big bs=1M count=2 2>/dev/null || echo full`, mounts)
	for _, want := range []string{"from the hostfrom the host", "ro\nhush440 5 6\n", "size=1024k", "size=2048k", "tmpfs /run/secrets/key tmpfs ro,nosuid,nodev,noexec", " /etc/hosts ", "full"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q (%+v)", want, out, exit)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(src, "y")); string(data) != "y\n" {
		t.Errorf("written through the mount: %q", data)
	}
	for _, gone := range []string{"new", "rw", "files", "scratch", "run", "etc/hosts", "etc/resolv.conf"} {
		if _, err := os.Lstat(filepath.Join(b.rootfs, gone)); !os.IsNotExist(err) {
			t.Errorf("stub left: %s %v", gone, err)
		}
	}
	noLeaks(t, b)
}

// Images of Ubuntu have such a link; what is mounted is where it leads, and nothing of it stays.
func TestResolvConfLink(t *testing.T) { both(t, testResolvConfLink) }

func testResolvConfLink(t *testing.T, b *box) {
	b.net.cfg.DNS.Servers = []string{"203.0.113.5"}
	os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(b.rootfs, "etc/resolv.conf"))
	out, exit := b.sh(t, "cat /etc/resolv.conf; touch /x 2>/dev/null || echo read-only", func(s *Spec) {
		s.ReadOnlyRoot = true
	})
	if exit.Code != 0 || !strings.Contains(out, "nameserver 203.0.113.5\n") || !strings.Contains(out, "read-only\n") {
		t.Errorf("%q %+v", out, exit)
	}
	if _, err := os.Lstat(filepath.Join(b.rootfs, "run")); !os.IsNotExist(err) {
		t.Errorf("stub left: %v", err)
	}
	if _, err := os.Readlink(filepath.Join(b.rootfs, "etc/resolv.conf")); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) { both(t, testManyAtOnce) }

func testManyAtOnce(t *testing.T, b *box) {
	b.write("etc/hosts", "") // the steps share a root, so that no mount point may come and go
	b.write("etc/resolv.conf", "")
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if out, exit := b.sh(t, fmt.Sprintf("echo %d; exit %d", i, i), func(s *Spec) { s.ReadOnlyRoot = true }); out != fmt.Sprintln(i) || exit.Code != i {
				t.Errorf("%q %+v", out, exit)
			}
		})
	}
	wg.Wait()
	noLeaks(t, b)
}

// A step that replaces the parent of a mount point by a link deletes nothing outside of its root.
func TestStubSwap(t *testing.T) { both(t, testStubSwap) }

func testStubSwap(t *testing.T, b *box) {
	canary := t.TempDir()
	os.Mkdir(filepath.Join(canary, "sub"), 0o755)
	out, exit := b.sh(t, "umount /a/sub; mv /a /b && ln -s "+canary+" /a", func(s *Spec) {
		s.Security = graph.SecurityInsecure
		s.Args[2] = "busybox " + s.Args[2]
		s.Mounts = []Mount{{Type: Tmpfs, Target: "/a/sub"}}
	})
	if exit.Code != 0 {
		t.Fatalf("%q %+v", out, exit)
	}
	if _, err := os.Stat(filepath.Join(canary, "sub")); err != nil {
		t.Fatal(err)
	}
	if target, _ := os.Readlink(filepath.Join(b.rootfs, "a")); target != canary {
		t.Errorf("the link is gone: %q", target)
	}
}

func TestCancel(t *testing.T) { both(t, testCancel) }

func testCancel(t *testing.T, b *box) {
	reason := errors.New("the client left")
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(after)
			cancel(reason)
		}()
		_, err := b.Run(ctx, &Spec{RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", "trap '' TERM; (sleep 100 &) ; sleep 100"}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone, Stdout: io.Discard})
		if !errors.Is(err, reason) {
			t.Errorf("after %s: %v", after, err)
		}
		noLeaks(t, b)
	}
}

func TestLimits(t *testing.T) { both(t, testLimits) }

func testLimits(t *testing.T, b *box) {
	_, exit := b.sh(t, "head -c 200000000 /dev/zero | tail -c 150000000 | wc -c; exit 7", func(s *Spec) { s.Limits.Memory = 16 << 20 })
	// The kernel may end the shell as well, if the memory of its victim is not free soon enough.
	if exit.Code != 7 && exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("%+v", exit)
	}
	out, _ := b.sh(t, "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all", func(s *Spec) { s.Limits.PIDs = 5 })
	if !strings.Contains(out, "can't fork") {
		t.Errorf("%q", out)
	}
	out, _ = b.sh(t, "ulimit -n; grep -c . /proc/mounts >/dev/null; cat /sys/fs/cgroup/cpuset/cpuset.cpus /sys/fs/cgroup/cpuset.cpus 2>/dev/null", func(s *Spec) {
		s.Limits.Ulimits, s.Limits.CPUSet, s.Limits.CgroupParent = []graph.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}}, "0", b.allowedParents[0]
	})
	if out != "77\n0\n" {
		t.Errorf("%q", out)
	}
	if left := b.host.cgroups.dirs(b.allowedParents[0]); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	noLeaks(t, b)
}

func TestNetworkNone(t *testing.T) { both(t, testNetworkNone) }

func testNetworkNone(t *testing.T, b *box) {
	for range 2 { // the second one gets the namespace of the first
		out, _ := b.sh(t, "ls /sys/class/net 2>/dev/null; ip -o addr; ip route", nil)
		if !strings.Contains(out, "127.0.0.1/8") || strings.Contains(out, "eth0") || strings.Contains(out, "default") {
			t.Errorf("%q", out)
		}
	}
	if n := len(b.net.none.idle); n != 1 {
		t.Errorf("%d idle namespaces", n)
	}
	b.sh(t, "ip link set lo down", func(s *Spec) { s.Security = graph.SecurityInsecure })
	if n := len(b.net.none.idle); n != 0 {
		t.Errorf("a namespace that the step could change is kept: %d", n)
	}
}

// The bridge is made in a network namespace of the test, and steps reach it and nothing else.
func TestBridge(t *testing.T) { both(t, testBridge) }

func testBridge(t *testing.T, b *box) {
	outside, err := newNS()
	if err != nil {
		t.Skip("no network namespaces:", err)
	}
	callers := world(t, outside)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(resolv, []byte("nameserver 127.0.0.53\nsearch example\n"), 0o644)
	br, err := newRouter(b.net.cfg.Subnet, b.owner, outside, resolv, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.net.decided, b.net.router, b.net.routed, b.net.resolv = true, br, &pool{max: 2, create: br.newSlot}, resolv
	step := func(s *Spec) { s.Network = graph.NetworkDefault }
	gw := br.gateway.String()
	out, exit := b.sh(t, "ip -o addr show eth0; ip route; cat /etc/resolv.conf; nc -w 2 "+gw+" 53 </dev/null && echo connected", step)
	for _, want := range []string{br.gateway.Next().String() + "/32", "default via " + gw, "nameserver " + gw, "search example", "connected"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q (%+v)", want, out, exit)
		}
	}
	if out, _ := b.sh(t, "nc -w 5 198.51.100.2 7777", step); out != "hello" {
		t.Errorf("the world said %q", out)
	}
	if from := <-callers; from != "198.51.100.1" {
		t.Errorf("the world saw %s, not the address of the machine", from)
	}
	b.write("etc/hosts", "") // steps at once share the root file system, and must make no mount points in it
	b.write("etc/resolv.conf", "")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, _ := b.sh(t, "ip -o addr show eth0 | wc -l", step); strings.TrimSpace(out) == "0" {
				t.Errorf("%q", out)
			}
		})
	}
	wg.Wait()
	if n := len(b.net.routed.idle); n != 2 {
		t.Errorf("%d idle namespaces", n)
	}
	err = inNS(outside, func() error {
		rules, err := firewall("", "nft", "list", "table", "ip", "strata_"+b.owner)
		if !strings.Contains(rules, "masquerade") {
			t.Errorf("%q %v", rules, err)
		}
		b.net.close()
		if rules, err := firewall("", "nft", "list", "table", "ip", "strata_"+b.owner); err == nil {
			t.Errorf("rules left: %q", rules)
		}
		return sweepNetwork(b.owner)
	})
	if err != nil {
		t.Error(err)
	}
	b.net, _ = newNetwork(NetworkConfig{}, b.owner, func(string) {}, b.log)
}

// world makes another machine that is connected with a network namespace, 198.51.100.1 on its side, and says hello to who calls
// 198.51.100.2:7777. It returns the addresses of the callers.
func world(t *testing.T, outside *os.File) <-chan string {
	t.Helper()
	callers, _ := worldNS(t, outside)
	return callers
}

// worldNS is world, with the namespace of the other machine.
func worldNS(t *testing.T, outside *os.File) (<-chan string, *os.File) {
	t.Helper()
	far, err := newNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	near, err := netlink.NewHandleAt(netns.NsHandle(outside.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := near.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.Fd())}); err != nil {
		t.Skip("no veth:", err)
	}
	callers := make(chan string, 99)
	up := func(ip string) error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParseAddr(ip), 24)}), netlink.LinkSetUp(link))
	}
	if err := inNS(outside, func() error { return up("198.51.100.1") }); err != nil {
		t.Fatal(err)
	}
	err = inNS(far, func() error {
		if err := up("198.51.100.2"); err != nil {
			return err
		}
		l, err := net.Listen("tcp", "198.51.100.2:7777")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				callers <- conn.RemoteAddr().(*net.TCPAddr).IP.String()
				conn.Write([]byte("hello"))
				conn.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return callers, far
}

// Where no network can be made, steps do not get the host's, unless that is allowed; then Strata prints a message once.
func TestNoBridge(t *testing.T) {
	needRoot(t)
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	var taken netip.Prefix
	for _, r := range routes {
		if r.Dst != nil {
			if p, perr := netip.ParsePrefix(r.Dst.String()); perr == nil && p.Bits() > 0 && p.Bits() <= 24 {
				taken = p
			}
		}
	}
	if !taken.IsValid() {
		t.Skip("no route to clash with:", err)
	}
	var told []string
	warn := func(s string) { told = append(told, s) }
	n, err := newNetwork(NetworkConfig{Subnet: taken, MayUseHost: true}, "ffffffff", warn, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := n.acquire(graph.NetworkDefault, "")
		if err != nil || l.path != "" {
			t.Fatalf("%+v %v", l, err)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "no free network") {
		t.Errorf("%q", told)
	}
	for _, c := range []NetworkConfig{{Mode: Bridge, Subnet: taken}, {Mode: Bridge, Subnet: taken, MayUseHost: true}, {Subnet: taken}} {
		n, err = newNetwork(c, "ffffffff", warn, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := n.acquire(graph.NetworkDefault, ""); diag.KindOf(err) != diag.Unavailable || !strings.Contains(fmt.Sprint(err), "no free network") {
			t.Errorf("%+v: %+v %v", c, l, err)
		}
	}
}

func TestTTY(t *testing.T) { testTTY(t, newBox(t, "runc")) }

func testTTY(t *testing.T, b *box) {
	resize := make(chan WinSize, 1)
	resize <- WinSize{Rows: 33, Cols: 99}
	out, exit := b.sh(t, "test -t 0 && test -t 1 && echo tty; read line; echo got $line; i=0; while [ \"$(stty size)\" != '33 99' ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; stty size; exit 4", func(s *Spec) {
		s.TTY, s.Stdin, s.Resize = true, strings.NewReader("typed\n"), resize
	})
	if exit.Code != 4 || !strings.Contains(out, "tty\r\n") || !strings.Contains(out, "got typed\r\n") || !strings.Contains(out, "33 99\r\n") {
		t.Errorf("%q %+v", out, exit)
	}
	noLeaks(t, b)
}

func TestStdin(t *testing.T) { both(t, testStdin) }

func testStdin(t *testing.T, b *box) {
	if out, _ := b.sh(t, "wc -c", func(s *Spec) { s.Stdin = io.LimitReader(zeros{}, 1<<20) }); strings.TrimSpace(out) != fmt.Sprint(1<<20) {
		t.Errorf("%q", out)
	}
	forever, w := io.Pipe() // never answers; the step must end all the same
	defer w.Close()
	if out, _ := b.sh(t, "echo done", func(s *Spec) { s.Stdin = forever }); out != "done\n" {
		t.Errorf("%q", out)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Sweep removes what a sandbox left that was killed in the middle of a step.
func TestSweep(t *testing.T) { both(t, testSweep) }

func testSweep(t *testing.T, b *box) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := b.Run(ctx, &Spec{RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", "echo up; sleep 100"}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone, Stdout: w, Mounts: []Mount{{Type: Data, Target: "/s", Data: []byte("x")}}})
		done <- err
	}()
	io.ReadFull(r, make([]byte, 3))
	go io.Copy(io.Discard, r)
	other, err := New(Options{Root: b.root})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	<-done
	cancel()
	noLeaks(t, b)
	for _, r := range b.host.cgroups.roots {
		if _, err := os.Stat(filepath.Join(r, cgroupName(b.owner))); !os.IsNotExist(err) {
			t.Errorf("%s: %v", r, err)
		}
	}
}
