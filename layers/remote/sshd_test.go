package remote

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// sshd is a private server of this process and a client configuration that trusts
// it and may log in.
type sshd struct {
	dir    string
	port   int
	config string
	server *exec.Cmd
}

// startSSHD starts a server. Lines are appended to its sshd_config.
func startSSHD(t *testing.T, lines ...string) *sshd {
	t.Helper()
	s := &sshd{dir: t.TempDir()}
	for _, key := range []string{"host", "user"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key))
	}
	pub, err := os.ReadFile(filepath.Join(s.dir, "user.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "authorized"), string(pub))
	s.port = testbed.FreePort(t)
	if len(lines) == 0 {
		lines = []string{"Subsystem sftp " + sftpServer(t)}
	}
	write(t, filepath.Join(s.dir, "sshd_config"), strings.Join(append([]string{
		fmt.Sprintf("Port %d", s.port),
		"ListenAddress " + testbed.Loopback(),
		"HostKey " + filepath.Join(s.dir, "host"),
		"PidFile none",
		"StrictModes no",
		"UsePAM no",
		"PermitRootLogin yes",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"MaxStartups 100",
		"AuthorizedKeysFile " + filepath.Join(s.dir, "authorized"),
	}, append(lines, "SetEnv SHLVL=2")...), "\n")+"\n") // or bash reads ~/.bashrc, which may take seconds, or wait for a lock
	// Root's sshd wants its privilege separation directory.
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	s.server = exec.Command(path, "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	var log bytes.Buffer
	s.server.Stderr = &log
	s.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.server.Start(); err != nil {
		t.Fatalf("sshd (package openssh-server): %v", err)
	}
	t.Cleanup(func() {
		_ = s.server.Process.Kill()
		_ = s.server.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", log.String())
		}
	})
	key, err := os.ReadFile(filepath.Join(s.dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "known"), "migratefs-test "+string(key))
	s.config = filepath.Join(s.dir, "ssh_config")
	write(t, s.config, s.client("known"))
	s.waitUp(t)
	return s
}

// client is an ssh_config for "source" with the given known_hosts file.
func (s *sshd) client(known string) string {
	return strings.Join([]string{
		"Host source",
		"HostName " + testbed.Loopback(),
		fmt.Sprintf("Port %d", s.port),
		"HostKeyAlias migratefs-test",
		"UserKnownHostsFile " + filepath.Join(s.dir, known),
		"GlobalKnownHostsFile none",
		"IdentityFile " + filepath.Join(s.dir, "user"),
		"IdentitiesOnly yes",
		"IdentityAgent none",
		"",
	}, "\n")
}

func (s *sshd) waitUp(t *testing.T) {
	t.Helper()
	for range 3000 {
		c, err := net.Dial("tcp", net.JoinHostPort(testbed.Loopback(), strconv.Itoa(s.port)))
		if err == nil {
			c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("sshd does not listen")
}

// children returns the pids of all descendants of pid whose name is comm.
func children(t *testing.T, pid int, comm string) (found []int) {
	t.Helper()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		if strings.TrimSpace(string(name)) == comm {
			found = append(found, child)
		}
		found = append(found, children(t, child, comm)...)
	}
	return found
}

// config is a Config for dir on s.
func (s *sshd) layer(dir string) Config {
	return Config{
		Target: Target{Host: "source", Path: dir}, SSHConfig: s.config, Timeout: time.Minute,
		pace: pace{first: 20 * time.Millisecond, most: 100 * time.Millisecond, refusal: 100 * time.Millisecond, healthy: time.Hour},
	}
}

func open(t *testing.T, cfg Config) *Layer {
	t.Helper()
	l, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// sftpServer finds OpenSSH's server.
func sftpServer(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatal("no sftp-server (package openssh-sftp-server)")
	return ""
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
