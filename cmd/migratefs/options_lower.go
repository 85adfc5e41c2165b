package main

import (
	"strings"
)

// lowerSpec is one lower as it was named.
type lowerSpec struct {
	text   string
	remote bool
	oci    bool // whiteout=oci
}

// addLowers adds a colon-separated list. A host is told from a directory by what
// follows: user@host:/path and host:/path are remote, as scp(1) has them; a
// directory that would look like a host is written ./host.
func (o *options) addLowers(v string) error {
	rest := v
	for rest != "" || v == "" {
		var one string
		one, rest = cutLower(rest)
		if err := o.addLower(one); err != nil {
			return err
		}
		if rest == "" {
			return nil
		}
	}
	return nil
}

func cutLower(s string) (one, rest string) {
	if strings.HasPrefix(s, "ssh://") {
		// The path begins after the host and ends at the next free colon.
		if i := strings.IndexByte(s[len("ssh://"):], '/'); i >= 0 {
			i += len("ssh://")
			j := indexEscaped(s[i:], ':')
			if j < 0 {
				return s, ""
			}
			return s[:i+j], s[i+j+1:]
		}
		return s, ""
	}
	i := indexEscaped(s, ':')
	if i < 0 {
		return s, ""
	}
	if at := strings.LastIndexByte(s[:i], '[') + 1; at > 0 { // an IPv6 address, which has more
		if end := strings.Index(s, "]:/"); end > at && !strings.Contains(s[:end], "/") {
			i = end + 1
		}
	}
	if !strings.Contains(s[:i], "/") && i+1 < len(s) && s[i+1] == '/' {
		j := indexEscaped(s[i+1:], ':')
		if j < 0 {
			return s, ""
		}
		return s[:i+1+j], s[i+1+j+1:]
	}
	return s[:i], s[i+1:]
}

func (o *options) addLower(v string) error {
	if v == "" {
		return usageErrorf("lowerdir= is empty: give a directory or user@host:/path")
	}
	l := lowerSpec{text: unescape(v)}
	i := indexEscaped(v, ':')
	l.remote = strings.HasPrefix(v, "ssh://") || i > 0 && !strings.Contains(v[:i], "/")
	o.lowers = append(o.lowers, l)
	return nil
}

// splitEscaped splits s at sep where no backslash precedes it; escapes stay.
func splitEscaped(s string, sep byte) (parts []string) {
	for {
		i := indexEscaped(s, sep)
		if i < 0 {
			return append(parts, s)
		}
		parts = append(parts, s[:i])
		s = s[i+1:]
	}
}

func indexEscaped(s string, c byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case c:
			return i
		}
	}
	return -1
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
