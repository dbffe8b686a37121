package dockerfile

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

func (st *step) expose(c *instructions.ExposeCommand) error {
	var ports []string
	for _, p := range c.Ports {
		_, words, err := expandWord(st.p.lex, p, st.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			ps, err := st.parsePort(w)
			if err != nil {
				return err
			}
			if ports = append(ports, ps...); len(ports) > maxPorts {
				return diag.Errorf(diag.Exhausted, "EXPOSE names more than %d ports", maxPorts)
			}
		}
	}
	if st.cfg.Config.ExposedPorts == nil {
		st.cfg.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		st.cfg.Config.ExposedPorts[p] = struct{}{}
	}
	st.commit(false, "EXPOSE %v", ports)
	return nil
}

// parsePort reads "[[ip:]host:]port[-port][/proto]" and returns "port/proto" for each port. Address and host port mean
// nothing in an image, but Dockerfiles have them.
func (st *step) parsePort(raw string) ([]string, error) {
	host, container := "", raw
	if i := strings.LastIndexByte(raw, ':'); i >= 0 {
		host, container = raw[:i], raw[i+1:]
	}
	ip := ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, host = host[:i], host[i+1:]
	}
	port, proto, _ := strings.Cut(container, "/")
	if port == "" {
		return nil, invalidf("invalid port: %q: no port specified", raw)
	}
	if proto == "" {
		proto = "tcp"
	}
	lower := strings.ToLower(proto)
	if lower != "tcp" && lower != "udp" && lower != "sctp" {
		return nil, didYouMean(invalidf("invalid port: %q: invalid proto: %s", raw, proto), lower, []string{"tcp", "udp", "sctp"})
	}
	lint.ExposeProtoCasing(st.lint, st.at, raw, proto)
	lint.ExposeInvalidFormat(st.lint, st.at, raw, ip, host)
	if ip != "" {
		bare := strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if _, err := netip.ParseAddr(bare); err != nil {
			return nil, invalidf("invalid IP address: %s", ip)
		}
	}
	first, last, ok := portRange(port)
	if !ok {
		return nil, invalidf("invalid containerPort: %s", port)
	}
	if host != "" {
		hf, hl, ok := portRange(host)
		if !ok {
			return nil, invalidf("invalid hostPort: %s", host)
		}
		if first != last && last-first != hl-hf {
			return nil, invalidf("invalid ranges specified for container and host Ports: %s and %s", port, host)
		}
	}
	var out []string
	for n := first; n <= last; n++ {
		out = append(out, strconv.Itoa(n)+"/"+lower)
	}
	return out, nil
}

func portRange(s string) (first, last int, ok bool) {
	from, to, isRange := strings.Cut(s, "-")
	f, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return 0, 0, false
	}
	if !isRange {
		return int(f), int(f), true
	}
	t, err := strconv.ParseUint(to, 10, 16)
	return int(f), int(t), err == nil && t >= f
}
