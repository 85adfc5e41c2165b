package remote

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Target names a directory on another host.
type Target struct {
	User string // "" leaves the choice to ssh
	Host string // a name that ssh understands, an alias in ssh_config included, or an address without brackets
	Port int    // 0 leaves the choice to ssh
	Path string // absolute and clean
}

// ParseTarget reads "[user@]host:/path" or "ssh://[user@]host[:port]/path".
// An IPv6 address stands in brackets. Nothing is unescaped: the path is taken
// byte by byte. User and host become arguments of ssh, which expands them into
// commands (ProxyCommand), so only letters, digits and a few signs are let in.
func ParseTarget(s string) (Target, error) {
	bad := func(format string, args ...any) (Target, error) {
		return Target{}, fmt.Errorf("remote layer %q: %s: write [user@]host:/path or ssh://[user@]host[:port]/path",
			s, fmt.Sprintf(format, args...))
	}
	rest, url := strings.CutPrefix(s, "ssh://")
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		return bad("there is no absolute path in it")
	}
	authority, dir := rest[:slash], rest[slash:]
	if strings.IndexByte(dir, 0) >= 0 {
		return bad("the path holds a NUL byte")
	}
	var t Target
	t.Path = path.Clean(dir)

	if !url {
		var ok bool
		if authority, ok = strings.CutSuffix(authority, ":"); !ok {
			return bad("the path must be absolute and follow host: directly")
		}
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		t.User, authority = authority[:at], authority[at+1:]
		if err := checkUser(t.User); err != nil {
			return bad("user %q %v", t.User, err)
		}
	}
	host, port, err := splitPort(authority, url)
	if err != nil {
		return bad("%v", err)
	}
	t.Host, t.Port = host, port
	return t, nil
}

// splitPort takes host, [v6] and, where allowed, :port apart.
func splitPort(s string, allowed bool) (host string, port int, err error) {
	digits, hasPort := "", false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if host, after, ok = strings.Cut(inner, "]"); !ok {
			return "", 0, fmt.Errorf("host %q lacks the closing bracket", s)
		}
		if digits, hasPort = strings.CutPrefix(after, ":"); !hasPort && after != "" {
			return "", 0, fmt.Errorf("%q after the address is not a port", after)
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() || checkHost(a.Zone()) != nil && a.Zone() != "" {
			return "", 0, fmt.Errorf("%q is not an IPv6 address", host)
		}
	} else {
		host, digits, hasPort = strings.Cut(s, ":")
		if err := checkHost(host); err != nil {
			return "", 0, fmt.Errorf("host %q %w", host, err)
		}
	}
	if !hasPort {
		return host, 0, nil
	}
	if !allowed {
		return "", 0, fmt.Errorf("host %q: a port can only be given in the ssh:// form, an IPv6 address only in brackets", s)
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("port %q is not a number from 1 to 65535", digits)
	}
	return host, int(n), nil
}

func checkUser(s string) error { return checkChars(s, "._-+=@") }
func checkHost(s string) error { return checkChars(s, "._-") }

func checkChars(s, signs string) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty")
	case len(s) > 255:
		return fmt.Errorf("is longer than 255 bytes")
	case s[0] == '-':
		return fmt.Errorf("begins with a dash")
	}
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte(signs, c) < 0 {
			return fmt.Errorf("holds %q, which is not allowed there", rune(c))
		}
	}
	return nil
}

// String returns t in the form that ParseTarget reads. The path is not quoted.
func (t Target) String() string {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if t.User != "" {
		host = t.User + "@" + host
	}
	if t.Port != 0 {
		return "ssh://" + host + ":" + strconv.Itoa(t.Port) + t.Path
	}
	return host + ":" + t.Path
}

// printable is t as it stands in messages: quoted if it would not be one
// harmless line.
func (t Target) printable() string {
	s := t.String()
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}
