package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHosts(t *testing.T) {
	a, b := NewHosts(t)
	s := StartSSHD(t, SSHDConfig{Host: a})
	b.Knows(s)
	if err := os.WriteFile(filepath.Join(a.Srv, "file"), []byte("of a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := a.Run("cat", "/srv/file"); got != "of a" {
		t.Errorf("a sees %q", got)
	}
	if got := b.Run("ls", "-A", "/srv"); got != "" {
		t.Errorf("b sees %q", got)
	}
	if err := b.Command("cat", filepath.Join(a.Srv, "file")).Run(); err == nil {
		t.Error("b sees what is behind a's /srv")
	}
	if got := b.Run("ssh", "source", "cat /srv/file"); got != "of a" {
		t.Errorf("b sees %q over ssh", got)
	}
	if got := b.Run("ssh", "source", "hostname"); got != "a\n" {
		t.Errorf("ssh leads to %q", got)
	}
	if got, err := os.ReadFile(a.Path("/srv/file")); err != nil || string(got) != "of a" {
		t.Errorf("the test sees %q, %v", got, err)
	}
	if got := b.Run("ip", "route", "show", "default"); got != "" {
		t.Errorf("b has a way out: %s", got)
	}
	if _, err := os.Stat("/srv/file"); err == nil {
		t.Error("a's mounts have reached the machine")
	}
}

func TestProxyBetweenHosts(t *testing.T) {
	a, b := NewHosts(t)
	p := NewProxyOn(t, b, "")
	s := StartSSHD(t, SSHDConfig{Host: a, Through: p})
	b.Knows(s)
	if got := strings.TrimSpace(b.Run("ssh", "source", "hostname")); got != "a" {
		t.Errorf("ssh leads to %q", got)
	}
	if up, down := p.Bytes(); up == 0 || down == 0 {
		t.Errorf("%d bytes up and %d down passed the proxy", up, down)
	}
}
