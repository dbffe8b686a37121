package buildkit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawClient speaks HTTP/2 frame by frame, as an attacker would.
type rawClient struct {
	t    *testing.T
	conn net.Conn
	f    *http2.Framer
	next uint32
	gone chan error // how the connection ended
}

func dialRaw(t *testing.T, addr string, settings ...http2.Setting) *rawClient {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rawClient{t: t, conn: conn, f: http2.NewFramer(conn, conn), next: 1, gone: make(chan error, 1)}
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := c.f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := c.f.ReadFrame(); err != nil {
				c.gone <- err
				return
			}
		}
	}()
	return c
}

// call begins a call of a method and returns its stream.
func (c *rawClient) call(method string, more ...hpack.HeaderField) (uint32, error) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "x"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}, more...) {
		if err := e.WriteField(h); err != nil {
			return 0, err
		}
	}
	id := c.next
	c.next += 2
	block := b.Bytes()
	first := block[:min(len(block), 16<<10)]
	if err := c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(first) == len(block)}); err != nil {
		return id, err
	}
	for block = block[len(first):]; len(block) > 0; {
		part := block[:min(len(block), 16<<10)]
		block = block[len(part):]
		if err := c.f.WriteContinuation(id, len(block) == 0, part); err != nil {
			return id, err
		}
	}
	return id, nil
}

// begin sends the head of a message of size bytes.
func (c *rawClient) begin(id uint32, size int) error {
	return c.f.WriteData(id, false, binary.BigEndian.AppendUint32([]byte{0}, uint32(size)))
}

// holding is what the server counts for all clients.
func (s *Server) holding() (n int64) {
	s.quota.memory.mu.Lock()
	defer s.quota.memory.mu.Unlock()
	for _, h := range s.quota.memory.clients {
		n += h.bytes
	}
	return n
}

const solveMethod = "/moby.buildkit.v1.Control/Solve"

// A client begins large messages in many streams and ends none: 200 of 15 MB held 3 GB.
func TestAttackUnfinishedMessages(t *testing.T) {
	const most = 32 << 20
	for _, frame := range []int{16 << 10, 700} { // frames below 1 KiB do not come from the pool until they are many
		t.Run(fmt.Sprint(frame), func(t *testing.T) {
			addr, s := serveServer(t, Options{Limits: Limits{MessageBytes: most}})
			honest := dial(t, addr)
			if _, err := honest.Info(t.Context(), &control.InfoRequest{}); err != nil {
				t.Fatal(err)
			}
			c := dialRaw(t, addr)
			part := make([]byte, frame)
			sent := 0
			var ids []uint32
			var err error
			for range 200 {
				id, herr := c.call(solveMethod)
				if herr == nil {
					herr = c.begin(id, 15<<20)
				}
				if err = herr; err != nil {
					break
				}
				ids = append(ids, id)
			}
			time.Sleep(100 * time.Millisecond) // for the windows that the handlers open; without them the server refuses the frames
			for n := 0; err == nil && n < 14<<20; n += frame {
				for _, id := range ids {
					if err = c.f.WriteData(id, false, part); err != nil {
						break
					}
					sent += frame
				}
				if sent > 40*most {
					break
				}
			}
			select {
			case <-c.gone:
			case <-time.After(time.Minute):
				t.Errorf("the connection goes on after %d bytes of unfinished messages", sent)
			}
			var mem runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&mem)
			if mem.HeapInuse > 10*most {
				t.Errorf("%d bytes of heap are in use", mem.HeapInuse)
			}
			if _, err := honest.Info(t.Context(), &control.InfoRequest{}); err != nil {
				t.Errorf("another connection of the same user: %v", err)
			}
			honest.cc.Close()
			noBytes(t, s)
		})
	}
}

// noBytes waits until nothing is counted any more.
func noBytes(t *testing.T, s *Server) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); s.holding() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still counted", s.holding())
		}
	}
}

// A client begins messages and cancels their calls: what was counted for them is given back, or an honest client that cancels
// builds would lose its connection some day.
func TestCanceledMessagesAreNotCounted(t *testing.T) {
	addr, s := serveServer(t, Options{})
	c := dialRaw(t, addr)
	for _, frame := range []int{1, 900, 1 << 10, 16 << 10} {
		for _, size := range []int{10, 1 << 20} {
			for range 20 {
				id, err := c.call(solveMethod)
				if err == nil {
					err = c.begin(id, size)
				}
				for n := 0; err == nil && n+frame < min(size, 60<<10); n += frame {
					err = c.f.WriteData(id, false, make([]byte, frame))
				}
				if err == nil {
					err = c.f.WriteRSTStream(id, http2.ErrCodeCancel)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	noBytes(t, s)
	select {
	case err := <-c.gone:
		t.Errorf("the connection ended: %v", err)
	default:
	}
}

// A client begins calls with as much metadata as is allowed, by repeating a header that is sent once.
func TestAttackMetadata(t *testing.T) {
	const most = 8 << 20
	addr, s := serveServer(t, Options{Limits: Limits{MessageBytes: most}})
	c := dialRaw(t, addr)
	big := strings.Repeat("m", 3000)
	fields := make([]hpack.HeaderField, 300)
	for i := range fields {
		fields[i] = hpack.HeaderField{Name: "x", Value: big}
	}
	for range 100 {
		if _, err := c.call(solveMethod, fields...); err != nil {
			break
		}
	}
	select {
	case <-c.gone:
	case <-time.After(time.Minute):
		t.Error("100 calls with 900 kB of metadata each are under way")
	}
	noBytes(t, s)
}

// A client asks and lets nothing of the answers come. Each call has ended for its handler, and its answer stays in memory.
func TestAttackAnswersThatNobodyReads(t *testing.T) {
	const most = 4 << 20
	addr, s := serveServer(t, Options{Limits: Limits{MessageBytes: most}})
	c := dialRaw(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	gone := false
	for n := 0; n < 100_000 && !gone; n++ {
		id, err := c.call("/moby.buildkit.v1.Control/ListWorkers")
		if err == nil {
			err = c.f.WriteData(id, true, make([]byte, 5))
		}
		gone = err != nil
	}
	if !gone {
		t.Errorf("100000 answers wait, %d bytes are counted", s.holding())
	}
	noBytes(t, s)
}

// What is sent of answers is given back, also with a client that reads slowly.
func TestAnswersThatAreReadAreNotCounted(t *testing.T) {
	addr, s := serveServer(t, Options{})
	c := dial(t, addr)
	for range 200 {
		if _, err := c.ListWorkers(t.Context(), &control.ListWorkersRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(30 * time.Second); s.holding() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still counted", s.holding())
		}
	}
}

// FuzzFrames: frames are found in any bytes, however they are cut, and the sum of what is counted is never negative.
func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	_ = fr.WriteSettings() // a buffer takes all
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte("x")})
	_ = fr.WriteData(1, false, []byte{0, 0, 0, 0, 9, 1, 2, 3})
	_ = fr.WriteDataPadded(1, false, []byte{4, 5, 6, 7, 8, 9, 0, 0, 0, 1}, []byte{0, 0, 0})
	_ = fr.WriteData(1, true, []byte{0, 1})
	_ = fr.WriteRSTStream(3, http2.ErrCodeCancel)
	f.Add(b.Bytes(), uint8(3))
	f.Add(b.Bytes(), uint8(255))
	f.Add([]byte(http2.ClientPreface+"\x00\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x01\x00\x08\x00\x00\x00\x01\xff"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		run := func(cut int) (held int64, streams int) {
			m := newMemory(1 << 40)
			k := &link{end: func() {}}
			m.open(k, "fuzz")
			w := newWire(nil, k, asServer)
			for b := data; len(b) > 0; {
				n := min(cut, len(b))
				w.in.feed(b[:n], w.came)
				b = b[n:]
				if k.bytes < 0 {
					t.Fatalf("%d bytes", k.bytes)
				}
			}
			return k.bytes, len(w.streams)
		}
		held, streams := run(int(cut) + 1)
		if h, s := run(len(data) + 1); h != held || s != streams {
			t.Errorf("cut: %d bytes of %d streams, whole: %d bytes of %d streams", held, streams, h, s)
		}
	})
}

// The part of a message that has come is counted until it is complete, whatever frames it comes in.
func TestUnfinishedPart(t *testing.T) {
	s := &arriving{held: streamSize}
	for i, c := range []struct {
		data string
		want int64
	}{
		{"\x00\x00", 2}, {"\x00\x00\x0a", 5}, {"01234", 10}, {"56789", 0}, {"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", 5}, {"x\x00", 1},
	} {
		s.held += s.take([]byte(c.data))
		if s.held-streamSize != c.want {
			t.Errorf("%d: %d bytes, want %d", i, s.held-streamSize, c.want)
		}
	}
}
