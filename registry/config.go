package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// Config is what a Client needs. The zero value is usable: anonymous access over https.
type Config struct {
	Hosts       map[string]HostConfig // by registry host, as in references
	Credentials Credentials           // nil = anonymous
	UserAgent   string
	Log         *slog.Logger
	Timing      Timing

	AllowMetadata bool // registries may be at link-local addresses and metadata services
}

// Credentials returns the login for a repository, as HOST/REPOSITORY, or for a host; the zero credential is anonymous access.
type Credentials func(ctx context.Context, target string) (session.Credential, error)

// HostConfig says how one registry is reached. The TOML names are those of buildkitd.toml.
type HostConfig struct {
	Mirrors  []string  `toml:"mirrors"`  // host[:port][/path] or a URL, tried in order before the registry when reading
	HTTP     bool      `toml:"http"`     // plain http
	Insecure bool      `toml:"insecure"` // https without verification of the certificate
	CA       []string  `toml:"ca"`       // PEM files, in addition to the system's
	KeyPairs []KeyPair `toml:"keypair"`  // client certificates
	probe    bool      // ask the server which protocol it speaks, and trust it
}

// KeyPair names the PEM files of a client certificate.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// Timing bounds how long a server may keep a build waiting. Zero fields mean the defaults.
type Timing struct {
	Header  time.Duration // from the request to the answer's header; 30 s
	Stall   time.Duration // a transfer below 1 KiB/s for so long is given up; 60 s
	Backoff time.Duration // before the first retry, doubled at each; 250 ms
	Tries   int           // 5
}

func (t Timing) orDefaults() Timing {
	if t.Header <= 0 {
		t.Header = 30 * time.Second
	}
	if t.Stall <= 0 {
		t.Stall = 60 * time.Second
	}
	if t.Backoff <= 0 {
		t.Backoff = 250 * time.Millisecond
	}
	if t.Tries <= 0 {
		t.Tries = 5
	}
	return t
}

// LoadHosts reads the [registry."host"] tables of a TOML file. Other tables are left alone. A missing file is no error.
func LoadHosts(path string) (map[string]HostConfig, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "registry configuration: %w", err)
	}
	return ParseHosts(path, data)
}

// ParseHosts is LoadHosts for bytes; name is for messages.
func ParseHosts(name string, data []byte) (map[string]HostConfig, error) {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return nil, tomlError(name, data, err)
	}
	section, err := toml.Marshal(map[string]any{"registry": all["registry"]})
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: %w", name, err)
	}
	var file struct {
		Registry map[string]HostConfig `toml:"registry"`
	}
	d := toml.NewDecoder(bytes.NewReader(section))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			return nil, diag.Errorf(diag.Invalid, "%s: unknown setting %s", name, strings.Join(strict.Errors[0].Key(), ".")).
				WithHint("a registry has mirrors, http, insecure, ca and keypair")
		}
		return nil, diag.Errorf(diag.Invalid, "%s: %w", name, err)
	}
	return file.Registry, nil
}

func tomlError(name string, data []byte, err error) error {
	var d *toml.DecodeError
	if !errors.As(err, &d) {
		return diag.Errorf(diag.Invalid, "%s: %w", name, err)
	}
	row, _ := d.Position()
	src := &diag.Source{Name: name, Data: data}
	return diag.Errorf(diag.Invalid, "%s: %w", name, err).WithSpan(src.Lines(row, row))
}

// tlsConfig reads the certificates that h names.
func (h HostConfig) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.Insecure}
	if len(h.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, path := range h.CA {
			pem, err := os.ReadFile(path)
			if err != nil {
				return nil, diag.Errorf(diag.Invalid, "certificate authority: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, diag.Errorf(diag.Invalid, "%s holds no PEM certificate", path)
			}
		}
		cfg.RootCAs = pool
	}
	for _, kp := range h.KeyPairs {
		c, err := tls.LoadX509KeyPair(kp.Cert, kp.Key)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "client certificate: %w", err)
		}
		cfg.Certificates = append(cfg.Certificates, c)
	}
	return cfg, nil
}

// isLoopback reports whether host (with or without port) names this machine.
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
