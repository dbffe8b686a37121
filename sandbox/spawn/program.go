package spawn

import (
	"fmt"
	"syscall"
	"unsafe"
)

// Program is what a new process does. The last call must be one that does not return.
type Program struct {
	ops  []op
	what []string
	keep []any // memory that the calls point to
}

// op is one call as the assembly reads it.
type op struct {
	nr    uintptr
	args  [6]uintptr
	ok    uintptr    // how far to go forward after success
	known [3]outcome // after certain errors
	any   uintptr    // after any other error; 0 = the program has failed
	_     uintptr    // a power of two as size
}

type outcome struct{ errno, forward uintptr }

// Call is the call that was added last.
type Call struct{ op *op }

// Call adds a system call. What says what it is for, in an error: "cannot <what>". A call that fails ends the program,
// unless On or OnAny say otherwise.
func (p *Program) Call(what string, nr uintptr, args ...uintptr) Call {
	o := op{nr: nr, ok: 1}
	copy(o.args[:], args)
	p.ops, p.what = append(p.ops, o), append(p.what, what)
	return Call{&p.ops[len(p.ops)-1]}
}

// On goes forward after an error. A call can have three such.
func (c Call) On(errno syscall.Errno, forward int) Call {
	for i := range c.op.known {
		if c.op.known[i].errno == 0 {
			c.op.known[i] = outcome{uintptr(errno), uintptr(forward)}
			return c
		}
	}
	panic("spawn: a call with too many errors")
}

// OnAny goes forward after any error that On does not name.
func (c Call) OnAny(forward int) Call {
	c.op.any = uintptr(forward)
	return c
}

// OK goes forward by more than one call after success.
func (c Call) OK(forward int) Call {
	c.op.ok = uintptr(forward)
	return c
}

// String is the address of a string that ends with a zero byte.
func (p *Program) String(s string) uintptr { return p.Bytes(append([]byte(s), 0)) }

// Bytes is the address of a copy of b.
func (p *Program) Bytes(b []byte) uintptr {
	b = append([]byte(nil), b...)
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// Strings is the address of a list of strings as execve(2) wants it.
func (p *Program) Strings(list []string) uintptr {
	out := make([]uintptr, len(list)+1)
	for i, s := range list {
		out[i] = p.String(s)
	}
	p.keep = append(p.keep, out)
	return uintptr(unsafe.Pointer(unsafe.SliceData(out)))
}

// Value is the address of what v points to, which must not change until the process has started. It must be allocated on
// the heap, as what is stored somewhere is.
func Value[T any](p *Program, v *T) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// Error says which call of a program failed.
type Error struct {
	What  string
	Errno syscall.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("cannot %s: %s", e.What, e.Errno) }

// Unwrap is the errno.
func (e *Error) Unwrap() error { return e.Errno }
