package remote

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGCMFirst(t *testing.T) {
	for list, want := range map[string]string{
		"chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com": "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr",
		"aes128-gcm@openssh.com,aes128-ctr": "aes128-gcm@openssh.com,aes128-ctr",
		"chacha20-poly1305@openssh.com":     "chacha20-poly1305@openssh.com",
		"":                                  "",
	} {
		if got := gcmFirst(list); got != want {
			t.Errorf("%q becomes %q, want %q", list, got, want)
		}
	}
}

// The order of ciphers is ours only where nobody else has chosen one.
func TestCiphersThatWereChosenStay(t *testing.T) {
	if !hasAES() {
		return // then none is ever changed
	}
	chosen := "Ciphers aes256-ctr,chacha20-poly1305@openssh.com,aes128-gcm@openssh.com\n"
	file := filepath.Join(t.TempDir(), "config")
	must(t, os.WriteFile(file, []byte(chosen), 0o600))
	empty := filepath.Join(t.TempDir(), "config")
	must(t, os.WriteFile(empty, nil, 0o600))
	for _, c := range []struct {
		name    string
		cfg     Config
		changed bool
	}{
		{"nobody has", Config{SSHConfig: empty}, true},
		{"in a file", Config{SSHConfig: file}, false},
		{"by an option", Config{SSHConfig: empty, SSHOptions: []string{"Ciphers=" + strings.TrimSpace(strings.TrimPrefix(chosen, "Ciphers "))}}, false},
		{"a part of the list", Config{SSHConfig: empty, SSHOptions: []string{"Ciphers=-aes128-ctr"}}, false},
	} {
		c.cfg.Target = Target{Host: "h", Path: "/"}
		must(t, c.cfg.fill())
		s, err := newSSH(&c.cfg)
		must(t, err)
		option := s.quickCiphers(soon(t))
		if (option != "") != c.changed {
			t.Errorf("%s: %q", c.name, option)
		}
		if option == "" {
			continue
		}
		set, err := s.said(soon(t), s.command(option, "-G"))
		must(t, err)
		if first, _, _ := strings.Cut(set["ciphers"], ","); !strings.Contains(first, "-gcm@") {
			t.Errorf("%s: ssh prefers %s", c.name, first)
		}
	}
}
