package remote

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// parks waits until the mount has given up to log in, and sees that it stays so
// without another attempt, however much is asked for.
func (b *bed) parks(refused func() int) {
	b.t.Helper()
	testbed.Until(b.t, "the refusal", func() bool { return strings.Contains(b.m.Log(), "parked=true") })
	testbed.Until(b.t, "the server's log of it", func() bool { return refused() > 0 })
	made := refused()
	for range 50 {
		if err := b.right("unseen/file", 1<<20); err == nil {
			b.t.Error("it was asked nevertheless")
		}
		b.isAway()
	}
	if n := refused(); n != made || n != 1 {
		b.t.Errorf("%d logins were refused, then %d, want 1\n%s", made, n, b.sshd.ServerLog())
	}
	lines := 0
	for line := range strings.Lines(b.m.Log()) {
		if strings.Contains(line, "parked=true") {
			lines++
			b.t.Log(strings.TrimSpace(line))
		}
	}
	if lines != 1 {
		b.t.Errorf("it is said %d times", lines)
	}
}

// logins counts the connections that sshd has seen from now on.
func (b *bed) logins() func() int {
	return b.count(func(line string) bool { return strings.Contains(line, "Connection from ") })
}

// refusals counts the logins from now on that the client has given up. (Those that
// the link broke end with "Connection reset".)
func (b *bed) refusals() func() int {
	return b.count(func(line string) bool {
		return strings.Contains(line, "Connection closed by ") && strings.Contains(line, "[preauth]")
	})
}

func (b *bed) count(is func(line string) bool) func() int {
	count := func() (n int) {
		for line := range strings.Lines(b.sshd.ServerLog()) {
			if is(line) {
				n++
			}
		}
		return n
	}
	before := count()
	return func() int { return count() - before }
}

// reauth runs migratefs reauth, which may ask for the passphrase "secret".
func (b *bed) reauth(args ...string) (string, error) {
	b.t.Helper()
	ask := b.sshd.BinDir() + "/askpass"
	must(b.t, os.WriteFile(ask, []byte("#!/bin/sh\necho secret\n"), 0o755))
	cmd := exec.Command(testbed.BuildRace(b.t), append([]string{"reauth"}, args...)...)
	cmd.Env = append(b.sshd.Env(), "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestRefusedKey: a key that the source does not take any more is tried once. When
// it is taken again nothing happens by itself, but by reauth.
func TestRefusedKey(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.putLocal()
	b.put("unseen/file", 1<<20)
	b.mount(",timeout=5,connections=1")
	h := b.localContent()
	keys, err := os.ReadFile(b.sshd.AuthorizedKeys())
	must(t, err)
	must(t, os.WriteFile(b.sshd.AuthorizedKeys(), nil, 0o600))
	refused := b.refusals()
	b.link.Cut()
	b.parks(refused)
	h.check("the login is refused")
	out, err := b.reauth(b.m.Dir)
	if err == nil || !strings.Contains(out, "refused the login") || strings.Count(out, "\n") > 3 {
		t.Errorf("reauth while the login is refused: %v, %s", err, out)
	}
	must(t, os.WriteFile(b.sshd.AuthorizedKeys(), keys, 0o600))
	if err := b.right("unseen/file", 1<<20); err == nil {
		t.Error("it has logged in again by itself")
	}
	if out, err = b.reauth(b.m.Dir); err != nil {
		t.Errorf("reauth: %v, %s", err, out)
	}
	b.mends(func() error { return b.right("unseen/file", 1<<20) })
	h.whole()
	b.m.Unmount()
}

// TestAnotherHostKey: a host with another key is not talked to, and not asked
// again and again.
func TestAnotherHostKey(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.putLocal()
	b.put("unseen/file", 1<<20)
	b.mount(",timeout=5,connections=1")
	h := b.localContent()
	b.link.Close(true)
	b.sshd.Kill()
	restore := b.sshd.OtherHostKey()
	b.sshd.Start()
	refused := b.refusals()
	b.link.Close(false)
	b.parks(refused)
	h.check("another host key")
	if out, err := b.reauth(b.m.Dir); err == nil {
		t.Errorf("reauth has logged in to another host: %s", out)
	}
	b.sshd.Kill()
	restore()
	b.sshd.Start()
	if out, err := b.reauth(b.m.Dir); err != nil {
		t.Errorf("reauth: %v, %s", err, out)
	}
	b.mends(func() error { return b.right("unseen/file", 1<<20) })
	h.whole()
	b.m.Unmount()
}

// TestPersonLogsIn: where only a person can log in, the daemon goes on over the
// connection that person has made, as long as that lasts, and tries no login of
// its own while it does.
func TestPersonLogsIn(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.putLocal()
	const size = 1 << 20
	for _, n := range []string{"one", "two", "three", "unseen/file"} {
		b.put(n, size)
	}
	b.mount(",timeout=20,connections=1")
	h := b.localContent()
	b.sshd.Passphrase("secret")
	refused := b.refusals()
	b.link.Cut()
	b.parks(refused)
	h.check("the key has a passphrase")
	if out, err := b.reauth(b.m.Dir); err != nil {
		t.Fatalf("reauth: %v, %s", err, out)
	}
	b.mends(func() error { return b.right("one", size) })
	logins := b.logins()
	for _, n := range []string{"two", "three"} {
		signal(b.clients(), 9)
		if err := b.right(n, size); err != nil {
			t.Errorf("after ssh was killed: %v", err)
		}
	}
	if n := logins(); n != 0 {
		t.Errorf("%d logins beside the person's", n)
	}
	h.whole()
	b.m.Unmount()

	// The mount that comes next finds the connection of the person.
	b.mount(",timeout=20,connections=1")
	if err := b.right("unseen/file", size); err != nil {
		t.Error(err)
	}
	if n := logins(); n != 0 {
		t.Errorf("%d logins beside the person's for a new mount", n)
	}
	b.m.Unmount()
}
