package graph

import "fmt"

// Exec runs a command. Mounts with an input or an output refer to the vertex's inputs and outputs by index; the mount at
// "/" is the root file system.
type Exec struct {
	Args       []string    `json:"args"`
	Env        []string    `json:"env,omitempty"` // NAME=value
	Cwd        string      `json:"cwd,omitempty"`
	User       string      `json:"user,omitempty"` // as in USER: name or id, with an optional :group
	Hostname   string      `json:"hostname,omitempty"`
	Mounts     []Mount     `json:"mounts"`
	SecretEnv  []SecretEnv `json:"secretEnv,omitempty"`
	Network    Network     `json:"network,omitempty"`
	Security   Security    `json:"security,omitempty"`
	ExtraHosts []HostIP    `json:"extraHosts,omitempty"`
	Devices    []Device    `json:"devices,omitempty"`
	ExitCodes  []int       `json:"exitCodes,omitempty"` // those that count as success; empty = 0
	Stubs      bool        `json:"stubs,omitempty"`     // remove the empty mount points that the run left
	Proxy      *ProxyEnv   `json:"-"`
	Limits     Limits      `json:"-"`
	Shell      bool        `json:"-"` // Args come from a shell form: the message may show them as one line
}

// MountType is the kind of a mount.
type MountType string

const (
	MountBind   MountType = "bind"
	MountCache  MountType = "cache"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountSSH    MountType = "ssh"
	MountInput  MountType = "input" // of a directory for layers: input/ and history.json below the target
)

// Sharing says what happens when two steps want one cache mount at the same time.
type Sharing string

const (
	SharingShared  Sharing = "shared"  // both write
	SharingPrivate Sharing = "private" // the second gets a new one
	SharingLocked  Sharing = "locked"  // the second waits
)

// None is the index of no input or no output.
const None = -1

// Mount is one mount of an exec.
type Mount struct {
	Type     MountType `json:"type"`
	Target   string    `json:"target"`
	Input    int       `json:"input"`            // index of the vertex's input, or None
	Source   string    `json:"source,omitempty"` // path within the input
	Output   int       `json:"output"`           // index of the vertex's output that keeps what is written, or None
	ReadOnly bool      `json:"readOnly,omitempty"`
	ByDef    bool      `json:"byDef,omitempty"` // key the input by how it was made, not by its content

	// ByContent keys the input by its content even where that costs much: at the root, or if it is written to. Not for a part of
	// a tree that is written to and kept: the rest of it would be in the result, but not in the key.
	ByContent bool `json:"byContent,omitempty"`

	CacheID string  `json:"cacheID,omitempty"`
	Sharing Sharing `json:"sharing,omitempty"`

	Size int64 `json:"size,omitempty"` // of a tmpfs, bytes; 0 = the kernel's default

	ID       string `json:"id,omitempty"` // of a secret or an ssh agent
	Optional bool   `json:"optional,omitempty"`
	UID      int    `json:"uid,omitempty"` // of the secret, socket or new cache directory
	GID      int    `json:"gid,omitempty"`
	Mode     uint32 `json:"mode,omitempty"` // 0 = 0400 for a secret, 0600 for a socket, 0755 for a cache

	Previous *Previous `json:"-"` // of an input mount; nil = an empty one
}

// CacheIdentity is what tells a cache mount from others of the same tenant: its id, the owner and the mode that its directory
// gets, and the content that it begins with ("" = it begins empty).
func (m *Mount) CacheIdentity(source Digest) string {
	id := m.CacheID
	if m.UID != 0 || m.GID != 0 {
		id += fmt.Sprintf(" owner=%d:%d", m.UID, m.GID)
	}
	if mode := m.Mode & 0o7777; mode != 0 && mode != 0o755 {
		id += fmt.Sprintf(" mode=%04o", mode)
	}
	if source != "" {
		id += " from=" + string(source)
	}
	return id
}

// SecretEnv gives a secret to the command as a variable.
type SecretEnv struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// Network is the network of a step. Unknown values are refused.
type Network string

const (
	NetworkDefault Network = ""
	NetworkNone    Network = "none"
	NetworkHost    Network = "host"
	NetworkProxy   Network = "proxy"      // a proxy alone, which goes out by the default network
	NetworkHostBy  Network = "proxy-host" // a proxy alone, which goes out by the host's network
)

// Proxied is the network of a step of which everything goes through a proxy.
func (n Network) Proxied() Network {
	switch n {
	case NetworkDefault:
		return NetworkProxy
	case NetworkHost:
		return NetworkHostBy
	}
	return n
}

// Direct is the network that the proxy of a step goes out by; of a step without one it is the step's.
func (n Network) Direct() Network {
	switch n {
	case NetworkProxy:
		return NetworkDefault
	case NetworkHostBy:
		return NetworkHost
	}
	return n
}

// Security is the confinement of a step. Unknown values are refused.
type Security string

const (
	SecuritySandbox  Security = ""
	SecurityInsecure Security = "insecure"
)

// HostIP is a line of /etc/hosts.
type HostIP struct {
	Host string `json:"host"`
	IP   string `json:"ip"`
}

// Device asks for a device by its CDI name.
type Device struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// ProxyEnv is set for the command in both cases of the names, and is part of no key.
type ProxyEnv struct{ HTTP, HTTPS, FTP, No, All string }

// Ulimit is one resource limit, as in setrlimit(2), with Docker's names ("nofile").
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Limits bound a step. They change no result, so they are part of no key. Zero values mean no limit of the step's own.
type Limits struct {
	Ulimits      []Ulimit
	Memory       int64 // bytes
	MemorySwap   int64 // bytes of memory and swap; -1 = unlimited
	CPUShares    uint64
	CPUPeriod    uint64 // microseconds
	CPUQuota     int64  // microseconds per period
	CPUSet, Mems string // "0-3,5"
	PIDs         int64
	ShmSize      int64 // bytes of /dev/shm
	CgroupParent string
}

func (*Exec) Kind() string { return "exec" }

// Outputs counts the mounts that keep what is written.
func (e *Exec) Outputs() int {
	n := 0
	for _, m := range e.Mounts {
		if m.Output >= n {
			n = m.Output + 1
		}
	}
	return n
}

// Uses selects the mounted path of an input of which no mount becomes an output, or that asks for it. What is written to a mount
// without an output is seen by nobody else.
func (e *Exec) Uses(i int) *Selector {
	s := &Selector{}
	for _, m := range e.Mounts {
		if m.Input != i {
			continue
		}
		if m.ByDef || m.Type == MountCache || !m.ByContent && (m.Output != None || m.Target == "/") {
			return nil
		}
		p := m.Source
		if p == "" {
			p = "/"
		}
		s.Paths = append(s.Paths, Select{Path: p, Follow: true})
	}
	return s
}
