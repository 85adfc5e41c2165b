package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestBugreport: what is private is in names, options and messages, and in no report
// but one that was asked for it; secrets are in none.
func TestBugreport(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	s := newSite(t)
	s.startSSHD(t)
	for _, dir := range []string{"quokka point", "quokka-upper", "quokka low", "quokka far"} {
		must(t, os.Mkdir(s.at(dir), 0o755))
	}
	must(t, os.WriteFile(s.at("quokka far/a quokka: secret.txt"), []byte("quokka content"), 0o644))
	must(t, os.WriteFile(s.at("quokka far/here"), []byte("quokka content"), 0o644))
	m := testbed.Mount(t, "prefetch=off,timeout=2,fill_rate=77M,fsname=quokka-name,ssh_option=SetEnv=QUOKKA=hunter2,log="+s.at("quokka.log")+
		",lowerdir=source:"+s.at("quokka far")+":"+s.at("quokka low")+",upperdir="+s.at("quokka-upper"), s.at("quokka point"),
		testbed.MountConfig{Env: append(s.env, "QUOKKA_TOKEN=hunter3")})
	// On a slow machine the source may take longer than it is waited for here.
	testbed.Until(t, "a file of each side", func() bool {
		werr := os.WriteFile(m.Path("quokka-new"), nil, 0o644)
		_, rerr := os.ReadFile(m.Path("here"))
		return werr == nil && rerr == nil
	})
	s.sshd.Kill()
	if _, err := os.ReadFile(m.Path("a quokka: secret.txt")); !errors.Is(err, unix.EIO) {
		t.Fatalf("the source is away: %v", err)
	}

	report := func(name string, args ...string) string {
		t.Helper()
		out, _ := tool(t, 0, append([]string{"bugreport", "-o", s.at(name)}, args...)...)
		contains(t, "bugreport", out, s.at(name)+" is written", "Read it before you send it", "Not in it: ")
		var st unix.Stat_t
		if err := unix.Lstat(s.at(name), &st); err != nil || st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("the report: mode %o, %v", st.Mode, err)
		}
		b, err := os.ReadFile(s.at(name))
		must(t, err)
		text := string(b)
		contains(t, name, text, "kernel Linux ", "\nssh: OpenSSH", "openat2(2)", "fill_rate=77M", "ssh_option=SetEnv=(left out)",
			"/dev/fuse", "Not in it: ")
		for _, secret := range []string{"hunter2", "hunter3", "quokka content"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %q:\n%s", name, secret, text)
			}
		}
		return text
	}
	hidden := func(name, text string) {
		t.Helper()
		host, err := os.Hostname()
		must(t, err)
		for _, private := range []string{"quokka", s.dir, filepath.Base(s.dir), "127.0.0.1", host, "source:"} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(private)) {
				t.Errorf("%s has %q:\n%s", name, private, text)
			}
		}
	}
	text := report("hidden", m.Point)
	hidden("the report", text)
	contains(t, "the report", text, "lowerdir=host-1:path-", "upperdir=path-", `"role": "upper"`, "migratefs_open_handles ",
		"request failed op=", "cause=", "connection lost", "overlay/")
	contains(t, "the report with names", report("names", "--names"), "Mount "+m.Point, "a quokka: secret.txt",
		"lowerdir=source:"+s.at("quokka far")+":"+s.at("quokka low"), "fsname=quokka-name")

	_, line := tool(t, 1, "bugreport", "-o", s.at("hidden"), m.Point)
	contains(t, "bugreport over a file", line, s.at("hidden"), "file exists", "-o")
	_, line = tool(t, 1, "bugreport", "-o", "-", s.at("lower"))
	contains(t, "bugreport of no mount", line, "not mounted")
	tool(t, 2, "bugreport", "a", "b")

	m.Kill()
	text = report("dead", m.Point)
	hidden("the report of a dead mount", text)
	contains(t, "the report of a dead mount", text, "is dead", "fill_rate=77M", "request failed op=")
	m.RemoveDead()
}
