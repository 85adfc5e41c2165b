package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sftp runs a batch of OpenSSH's own client and returns what it printed.
func sftp(tb testing.TB, s *SSHD, batch string) (string, error) {
	tb.Helper()
	file := filepath.Join(TempDir(tb), "batch")
	if err := os.WriteFile(file, []byte(batch), 0o600); err != nil {
		tb.Fatal(err)
	}
	out, err := exec.Command("sftp", "-q", "-oBatchMode=yes", "-oConnectTimeout=5",
		"-F", s.SSHConfig(), "-b", file, "source").CombinedOutput()
	return string(out), err
}

func TestSSHDLogsWhatWasRead(t *testing.T) {
	s := StartSSHD(t)
	dir := TempDir(t)
	name := filepath.Join(dir, "a file")
	want := strings.Repeat("0123456789", 10000)
	if err := os.WriteFile(name, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("not asked for"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(dir, "got")
	if out, err := sftp(t, s, "get \""+name+"\" "+got+"\n"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, _ := os.ReadFile(got); string(b) != want {
		t.Errorf("%d bytes arrived, want %d", len(b), len(want))
	}
	if opened := s.Opened(); len(opened) != 1 || opened[0] != name {
		t.Errorf("opened: %q, want %q", opened, name)
	}
	if n := s.BytesRead(); n[name] < int64(len(want)) || n[other] != 0 {
		t.Errorf("bytes read: %v, want at least %d of one file", n, len(want))
	}
	lstat := false
	for _, r := range s.Requests() {
		lstat = lstat || r.Op == "lstat" || r.Op == "stat"
	}
	if !lstat {
		t.Errorf("no stat among %v", s.Requests())
	}
	s.ForgetRequests()
	if r := s.Requests(); len(r) > 0 {
		t.Errorf("after ForgetRequests: %v", r)
	}
}

func TestSSHDKillAndStart(t *testing.T) {
	s := StartSSHD(t)
	s.UseForTest(t)
	cmd := exec.Command("ssh", "source", "echo up; exec sleep 1000")
	var out Output
	cmd.Stdout = &out
	client, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	Until(t, "the session", func() bool { return strings.Contains(out.String(), "up") })
	if len(s.Sessions()) == 0 {
		t.Error("no session is known")
	}
	s.Kill()
	if !client.WaitFor(patience) {
		t.Error("the client goes on without its server")
		client.KillTree()
	}
	if err := exec.Command("ssh", "-oConnectTimeout=5", "source", "true").Run(); err == nil {
		t.Error("a killed server answers")
	}
	s.Start()
	Run(t, "ssh", "source", "true")
}

func TestProxy(t *testing.T) {
	p := NewProxy(t, "")
	s := StartSSHD(t, SSHDConfig{Through: p})
	dir := TempDir(t)
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	get := "get " + name + " " + filepath.Join(dir, "got") + "\n"
	if out, err := sftp(t, s, get); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, down := p.Bytes(); down < 1<<20 || p.Accepted() != 1 {
		t.Errorf("%d bytes came down in %d connections", down, p.Accepted())
	}

	p.CutAfter(100 << 10)
	if out, err := sftp(t, s, get); err == nil {
		t.Errorf("a file came whole through a cut: %s", out)
	}
	p.CorruptAfter(100 << 10)
	if out, err := sftp(t, s, get); err == nil {
		t.Errorf("a file came whole through corruption: %s", out)
	}
	p.Refuse(true)
	if out, err := sftp(t, s, get); err == nil {
		t.Errorf("through refusal: %s", out)
	}
	p.Refuse(false)

	p.SetRTT(20 * time.Millisecond)
	p.SetRate(8 << 20)
	before := time.Now()
	if out, err := sftp(t, s, get); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Not a measurement: the link cannot be faster than it was told to be.
	if took := time.Since(before); took < 125*time.Millisecond+5*20*time.Millisecond {
		t.Errorf("1 MiB at 8 MiB/s and 20 ms took %v", took)
	}
}

func TestProxyStall(t *testing.T) {
	p := NewProxy(t, "")
	s := StartSSHD(t, SSHDConfig{Through: p})
	s.UseForTest(t)
	p.Stall()
	var out Output
	cmd := exec.Command("ssh", "source", "echo through")
	cmd.Stdout = &out
	client, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	Until(t, "the connection", func() bool { return p.Open() == 1 })
	if client.WaitFor(300*time.Millisecond) || out.String() != "" {
		t.Errorf("a stalled link carried %q", out.String())
	}
	p.Resume()
	if err := client.Wait(); err != nil || out.String() != "through\n" {
		t.Errorf("after Resume: %v, %q", err, out.String())
	}
}
