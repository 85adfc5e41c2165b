package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMount(t *testing.T) {
	dir := TempDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"lower", "upper", "mnt"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("lower/file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	options := "lowerdir=" + at("lower") + ",upperdir=" + at("upper")

	m := Mount(t, options, at("mnt"))
	if b, err := os.ReadFile(m.Path("file")); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
	m.Unmount()
	if !m.Process().WaitFor(0) || len(MountsBelow(dir)) > 0 {
		t.Error("something is left of the mount")
	}

	m = Mount(t, options, at("mnt"))
	m.Kill()
	if _, err := os.Stat(m.Path("file")); err == nil {
		t.Error("a mount answers whose daemon was killed")
	}
	m = Mount(t, options, at("mnt")) // over the dead one
	if b, err := os.ReadFile(m.Path("file")); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
	m.Unmount()

	m, err := TryMount(t, "lowerdir="+at("none"), at("mnt"))
	if err == nil || !strings.Contains(m.Log(), at("none")) {
		t.Errorf("a mount of nothing: %v, %q", err, m.Log())
	}
}

func TestMountOnHost(t *testing.T) {
	NeedFUSE(t)
	a, b := NewHosts(t)
	s := StartSSHD(t, SSHDConfig{Host: a})
	b.Knows(s)
	if err := os.WriteFile(filepath.Join(a.Srv, "file"), []byte("of a"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"upper", "mnt"} {
		if err := os.Mkdir(filepath.Join(b.Srv, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := Mount(t, "lowerdir=source:/srv,upperdir=/srv/upper", "/srv/mnt", MountConfig{Host: b})
	if got := b.Run("cat", "/srv/mnt/file"); got != "of a" {
		t.Errorf("b reads %q", got)
	}
	if got, err := os.ReadFile(m.Path("file")); err != nil || string(got) != "of a" {
		t.Errorf("the test reads %q, %v", got, err)
	}
	m.Unmount()
}
