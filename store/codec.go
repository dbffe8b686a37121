package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/fnv"
	"time"

	"github.com/strata-build/strata/graph"
)

// kind is the first byte of a record's key: records of one kind are neighbours in the database.
type kind byte

const (
	kindLayer    kind = 'l' // LayerID, 8 bytes big-endian -> LayerInfo
	kindResult   kind = 'r' // result key -> Result
	kindMemo     kind = 'm' // definition key -> result key
	kindPreimage kind = 'p' // result key -> what was hashed
	kindChain    kind = 'c' // chain id -> LayerID
	kindImage    kind = 'i' // name -> Image, JSON
	kindVariant  kind = 'v' // diff_id -> []image.Descriptor, JSON
	kindBlob     kind = 'b' // digest -> size, owner
	kindMount    kind = 'd' // directory below mounts/ -> mountRecord, JSON
	kindUse      kind = 'u' // useKey of another record -> use
	kindState    kind = 's' // "clock", "next" -> number
	kindLost     kind = 'x' // name of an image that was lost with the database -> why it was not found again
)

var kindNames = map[kind]string{
	kindLayer: "layer", kindResult: "result", kindMemo: "memo", kindPreimage: "preimage", kindChain: "chain",
	kindImage: "image", kindVariant: "variant", kindBlob: "blob", kindMount: "cache mount", kindUse: "use", kindState: "state",
	kindLost: "lost name",
}

func (k kind) String() string { return kindNames[k] }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errDamaged = errors.New("its checksum does not match")

// sealedHead is the length of what seal puts before a payload: crc32c and sequence number.
const sealedHead = 4 + 8

// seal makes the stored form of a record. The checksum covers the key too, so that a value that turns up under another
// key is not believed. seq is the store's clock when the record was written: of two versions the higher one is newer.
func seal(key string, seq uint64, payload []byte) []byte {
	b := make([]byte, sealedHead, sealedHead+len(payload))
	binary.LittleEndian.PutUint64(b[4:], seq)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b, sum(key, b[4:]))
	return b
}

func sum(key string, rest []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, []byte(key)), castagnoli, rest)
}

// unseal returns a record's payload and sequence number.
func unseal(key string, b []byte) ([]byte, uint64, error) {
	if len(b) < sealedHead || binary.LittleEndian.Uint32(b) != sum(key, b[4:]) {
		return nil, 0, errDamaged
	}
	return b[sealedHead:], binary.LittleEndian.Uint64(b[4:]), nil
}

func layerKey(id LayerID) string {
	return string(binary.BigEndian.AppendUint64([]byte{byte(kindLayer)}, uint64(id)))
}

// useKey returns the key of a record's use: eight bytes of a hash (FNV-1a), because there are many and they are in every
// no-op build's log. Two records that share one are only collected in a slightly wrong order.
func useKey(key string) string {
	h := fnv.New64a()
	h.Write([]byte(key))
	return string(h.Sum([]byte{byte(kindUse)}))
}

func keyOf(k kind, name string) string { return string(rune(k)) + name }

// reader takes fields off a payload. After the first field that is not there, all are zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) time() time.Time {
	v := r.uint()
	switch {
	case v == 0:
		return time.Time{}
	case v < lastSeconds:
		return time.Unix(int64(v), 0)
	}
	return time.Unix(0, int64(v))
}

// count reads a number of elements of at least one byte each.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

// stack reads layer numbers, each as its difference to the one below: mostly one byte. Stacks have hundreds of layers and a
// no-op build reads hundreds of stacks, hence the short way for one byte.
func (r *reader) stack() []LayerID {
	stack := make([]LayerID, r.count())
	var id LayerID
	b := r.b
	for i := range stack {
		if len(b) > 0 && b[0] < 0x80 {
			id += LayerID(int64(b[0]>>1) ^ -int64(b[0]&1))
			b = b[1:]
		} else {
			d, n := binary.Varint(b)
			if n <= 0 {
				r.bad, r.b = true, nil
				return nil
			}
			id += LayerID(d)
			b = b[n:]
		}
		stack[i] = id
	}
	r.b = b
	return stack
}

func (r *reader) err() error {
	if r.bad || len(r.b) > 0 {
		return errors.New("it cannot be decoded")
	}
	return nil
}

func appendBytes[T string | []byte | graph.Digest](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// lastSeconds bounds the times that earlier versions have written, in seconds since 1970: now they are nanoseconds.
const lastSeconds = 1 << 40

func appendTime(b []byte, t time.Time) []byte {
	if t.Unix() <= 0 {
		return append(b, 0)
	}
	return binary.AppendUvarint(b, uint64(t.UnixNano()))
}

func encodeLayer(l LayerInfo) []byte {
	b := appendBytes(nil, l.DiffID)
	b = binary.AppendUvarint(b, uint64(max(0, l.Size)))
	b = binary.AppendUvarint(b, uint64(max(0, l.TarSize)))
	b = binary.AppendUvarint(b, uint64(max(0, l.Files)))
	b = appendTime(b, l.Created)
	b = appendBytes(b, l.Blob)
	if l.Owner == "" { // as earlier versions have written it
		return b
	}
	return appendBytes(b, l.Owner)
}

func decodeLayer(id LayerID, b []byte) (LayerInfo, error) {
	r := reader{b: b}
	l := LayerInfo{ID: id, DiffID: graph.Digest(r.bytes()), Size: int64(r.uint()), TarSize: int64(r.uint()), Files: int64(r.uint()), Created: r.time(), Blob: graph.Digest(r.bytes())}
	if len(r.b) > 0 {
		l.Owner = string(r.bytes())
	}
	return l, r.err()
}

func encodeResult(x Result) []byte {
	b := binary.AppendUvarint(nil, uint64(len(x.Outputs)))
	for _, stack := range x.Outputs {
		b = binary.AppendUvarint(b, uint64(len(stack)))
		var below LayerID
		for _, id := range stack {
			b = binary.AppendVarint(b, int64(id-below))
			below = id
		}
	}
	b = appendBytes(b, x.Label)
	b = binary.AppendUvarint(b, uint64(max(0, x.Cost)))
	b = appendTime(b, x.Created)
	b = appendBytes(b, []byte(x.Extra))
	if len(x.Blobs)+len(x.Origins)+len(x.Owner) == 0 { // as earlier versions have written it
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(x.Blobs)))
	for _, d := range x.Blobs {
		b = appendBytes(b, d)
	}
	if len(x.Origins)+len(x.Owner) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(x.Origins)))
	for _, o := range x.Origins {
		b = appendBytes(b, o)
	}
	if x.Owner == "" {
		return b
	}
	return appendBytes(b, x.Owner)
}

func decodeResult(b []byte) (Result, error) {
	r := reader{b: b}
	var x Result
	x.Outputs = make([][]LayerID, r.count())
	for i := range x.Outputs {
		x.Outputs[i] = r.stack()
	}
	x.Label = string(r.bytes())
	x.Cost = time.Duration(r.uint())
	x.Created = r.time()
	if e := r.bytes(); len(e) > 0 {
		x.Extra = append([]byte(nil), e...)
	}
	if len(r.b) > 0 {
		for range r.count() {
			x.Blobs = append(x.Blobs, graph.Digest(r.bytes()))
		}
	}
	if len(r.b) > 0 {
		for range r.count() {
			x.Origins = append(x.Origins, string(r.bytes()))
		}
	}
	if len(r.b) > 0 {
		x.Owner = string(r.bytes())
	}
	return x, r.err()
}

func encodeBlob(size int64, owner string) []byte {
	b := encodeUint(uint64(size))
	if owner == "" { // as earlier versions have written it
		return b
	}
	return appendBytes(b, owner)
}

func decodeBlob(b []byte) (size int64, owner string, err error) {
	r := reader{b: b}
	size = int64(r.uint())
	if len(r.b) > 0 {
		owner = string(r.bytes())
	}
	return size, owner, r.err()
}

func encodeUint(v uint64) []byte { return binary.AppendUvarint(nil, v) }

func decodeUint(b []byte) (uint64, error) {
	r := reader{b: b}
	v := r.uint()
	return v, r.err()
}

// use says when something was last read: by the store's clock, which only ever goes forward, and for people and policies
// by the wall clock.
type use struct {
	clock uint64
	at    time.Time
}

func encodeUse(u use) []byte { return appendTime(encodeUint(u.clock), u.at) }

func decodeUse(b []byte) (use, error) {
	r := reader{b: b}
	u := use{clock: r.uint(), at: r.time()}
	return u, r.err()
}
