package remote

import (
	"context"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/cpu"
)

// ssh's own first choice of a cipher is chacha20-poly1305, which takes twice the
// processor time of AES-GCM where there are instructions for that, and more than all
// else that a long read costs. So AES-GCM is put first in ssh's own list: nothing is
// agreed on that would not be agreed on without us. A list that anybody has chosen, in
// a configuration or for the whole system, stays as it is.

// quickCiphers is the option that does so, "" if the list is to stay.
func (s *ssh) quickCiphers(ctx context.Context) string {
	if !hasAES() {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	now, err := s.settings(ctx)
	if err != nil {
		return ""
	}
	own, err := s.said(ctx, s.bare("-F", "none", "-G"))
	if err != nil || own["ciphers"] != now["ciphers"] {
		return ""
	}
	if list := gcmFirst(now["ciphers"]); list != now["ciphers"] {
		return "-oCiphers=" + list
	}
	return ""
}

func hasAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
}

// gcmFirst is list with its AES-GCM ciphers first.
func gcmFirst(list string) string {
	all := strings.Split(list, ",")
	slices.SortStableFunc(all, func(a, b string) int { return rankOf(a) - rankOf(b) })
	return strings.Join(all, ",")
}

func rankOf(cipher string) int {
	if strings.HasPrefix(cipher, "aes") && strings.HasSuffix(cipher, "-gcm@openssh.com") {
		return 0
	}
	return 1
}
