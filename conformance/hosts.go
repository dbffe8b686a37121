package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/dns/dnsmessage"
)

// certificates makes the test authority, as PEM, and a certificate of it for all stand-in hosts.
func certificates() ([]byte, tls.Certificate, error) {
	fail := func(err error) ([]byte, tls.Certificate, error) { return nil, tls.Certificate{}, err }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "conformance test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "stand-in hosts"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for name := range hosts {
		leaf.DNSNames = append(leaf.DNSNames, name)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// serveHosts starts the name server, the web sites and github.com's ssh inside the world. They run until the process ends.
func serveHosts(cert tls.Certificate, mirror string) error {
	dns, err := net.ListenPacket("udp", net.JoinHostPort(hostAddr, "53"))
	if err != nil {
		return err
	}
	go serveNames(dns)
	plain, err := net.Listen("tcp", net.JoinHostPort(hostAddr, "80"))
	if err != nil {
		return err
	}
	secure, err := net.Listen("tcp", net.JoinHostPort(hostAddr, "443"))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: sites(mirror), ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(plain) }()
	go func() {
		_ = server.Serve(tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
	}()
	shell, err := net.Listen("tcp", net.JoinHostPort(githubAddr, "22"))
	if err != nil {
		return err
	}
	return serveSSH(shell)
}

// sites are the web sites by host.
func sites(mirror string) http.Handler {
	page := func(content string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, content) })
	}
	mux := http.NewServeMux()
	mux.Handle("example.com/", page("<h1>Example Domain</h1>\n"))
	mux.HandleFunc("example.com/foreign/{digest}", func(w http.ResponseWriter, r *http.Request) {
		alg, hash, ok := strings.Cut(r.PathValue("digest"), ":")
		if !ok || len(hash) < 2 {
			http.NotFound(w, r)
			return
		}
		http.ServeFile(w, r, filepath.Join(mirror, "data/docker/registry/v2/blobs", alg, hash[:2], hash, "data"))
	})
	mux.Handle("raw.githubusercontent.com/moby/buildkit/v0.10.1/README.md", page(buildREADME))
	mux.Handle("raw.githubusercontent.com/moby/moby/v20.10.21/README.md", page(mobyREADME))
	mux.Handle("dl-cdn.alpinelinux.org/apk/", http.StripPrefix("/apk/", http.FileServer(http.Dir(filepath.Join(mirror, "apk")))))
	mux.Handle("dl-cdn.alpinelinux.org/", page("index\n"))
	// Everything that the tests may pull is in the mirror: the registry itself has nothing.
	mux.HandleFunc("registry-1.docker.io/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
	})
	return mux
}

// serveNames answers for the stand-in hosts, and that there is no such name for all others.
func serveNames(conn net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, err := answerName(buf[:n]); err == nil {
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

func answerName(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	if len(m.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Authorities, m.Additionals = true, true, nil, nil
	addr, known := hosts[strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))]
	switch {
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(addr).To4())},
		}}
	}
	return m.Pack()
}

// serveSSH answers as github.com does to someone without an account: it looks at every key and takes none.
func serveSSH(l net.Listener) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, _ ssh.PublicKey) (*ssh.Permissions, error) {
		return nil, fmt.Errorf("%s is not known", c.User())
	}}
	config.AddHostKey(signer)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _, _, _ = ssh.NewServerConn(conn, config) // never succeeds
			}()
		}
	}()
	return nil
}
