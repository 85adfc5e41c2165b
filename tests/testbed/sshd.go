package testbed

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// SSHDConfig says how a private sshd differs from the usual one. The zero value
// is the usual one: Loopback, this namespace, OpenSSH's sftp-server.
type SSHDConfig struct {
	Host    *Host    // where it runs; nil: here
	Lines   []string // more sshd_config, before the lines of ours
	SFTP    string   // command of the sftp subsystem; "": OpenSSH's, which logs to Log
	Through *Proxy   // the link that clients use; its Target is set. nil: none
}

// SSHD is a private OpenSSH server that lets the user of the tests in, by key
// and as nobody else, and with nothing but SFTP and commands.
//
// Clients find it by ssh's own means: a configuration file that knows the host
// alias "source". Env puts an ssh in PATH that reads that file and no other.
type SSHD struct {
	Alias string // "source": the host name that clients use
	Port  int    // where sshd listens; clients behind Through use the proxy's port

	tb   testing.TB
	cfg  SSHDConfig
	dir  string
	addr string

	mu   sync.Mutex
	proc *Process // nil while stopped
}

// StartSSHD starts a private sshd, which ends with the test.
func StartSSHD(tb testing.TB, configs ...SSHDConfig) *SSHD {
	tb.Helper()
	NeedRoot(tb)
	s := &SSHD{Alias: "source", tb: tb, dir: TempDir(tb), addr: Loopback()}
	if len(configs) > 0 {
		s.cfg = configs[0]
	}
	if s.cfg.Host != nil {
		s.addr, s.Port = s.cfg.Host.Addr, 22
	} else {
		s.Port = FreePort(tb)
	}
	s.writeKeys()
	s.writeServerConfig()
	if s.cfg.Through != nil {
		s.cfg.Through.SetTarget(net.JoinHostPort(s.addr, strconv.Itoa(s.Port)))
	}
	s.writeClientConfig()
	tb.Cleanup(s.Kill)
	s.Start()
	return s
}

func (s *SSHD) path(name string) string { return filepath.Join(s.dir, name) }

func (s *SSHD) write(name, text string, mode os.FileMode) {
	if err := os.WriteFile(s.path(name), []byte(text), mode); err != nil {
		s.tb.Fatal(err)
	}
}

// writeKeys makes the host's key and the user's, and the client's known_hosts.
func (s *SSHD) writeKeys() {
	keygen := Program(s.tb, "ssh-keygen")
	for _, name := range []string{"host_key", "id"} {
		Run(s.tb, keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", s.path(name))
	}
	pub, err := os.ReadFile(s.path("host_key.pub"))
	if err != nil {
		s.tb.Fatal(err)
	}
	s.write("known_hosts", "source "+string(pub), 0o600)
	if pub, err = os.ReadFile(s.path("id.pub")); err != nil {
		s.tb.Fatal(err)
	}
	s.write("authorized_keys", string(pub), 0o600)
}

// writeServerConfig writes sshd_config and the wrapper of sftp-server that
// sends its log to a file: by itself it logs to syslog or to the client.
func (s *SSHD) writeServerConfig() {
	sftp := s.cfg.SFTP
	if sftp == "" {
		// At DEBUG it logs every read with its offset and length.
		s.write("sftp.sh", fmt.Sprintf("#!/bin/sh\nexec %s -e -l DEBUG 2>>%s\n",
			sftpServer(s.tb), quote(s.LogFile())), 0o755)
		sftp = s.path("sftp.sh")
	}
	s.write("sftp.log", "", 0o666)
	// Debian's sshd wants it, and its service makes it.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		s.tb.Fatal(err)
	}
	lines := append([]string{}, s.cfg.Lines...)
	lines = append(lines,
		"ListenAddress "+s.addr,
		"Port "+strconv.Itoa(s.Port),
		"HostKey "+s.path("host_key"),
		"PidFile none",
		"AuthorizedKeysFile "+s.path("authorized_keys"),
		"StrictModes no",
		"UsePAM no",
		"PermitRootLogin prohibit-password",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"MaxStartups 100",
		"LogLevel VERBOSE",
		"SetEnv SHLVL=2", // or bash reads ~/.bashrc first, which may take seconds, or wait for a lock
		"Subsystem sftp "+sftp,
	)
	s.write("sshd_config", strings.Join(lines, "\n")+"\n", 0o600)
}

func (s *SSHD) writeClientConfig() {
	me, err := user.Current()
	if err != nil {
		s.tb.Fatal(err)
	}
	addr, port := s.addr, s.Port
	if s.cfg.Through != nil {
		addr, port = s.cfg.Through.Host(), s.cfg.Through.Port()
	}
	s.write("ssh_config", fmt.Sprintf(`Host source
	HostName %s
	Port %d
	User %s
	HostKeyAlias source
	IdentityFile %s
	IdentitiesOnly yes
	UserKnownHostsFile %s
	GlobalKnownHostsFile /dev/null
	StrictHostKeyChecking yes
`, addr, port, me.Username, s.path("id"), s.path("known_hosts")), 0o600)

	if err := os.MkdirAll(s.path("bin"), 0o755); err != nil {
		s.tb.Fatal(err)
	}
	s.write("bin/ssh", fmt.Sprintf("#!/bin/sh\nexec %s -F %s \"$@\"\n",
		Program(s.tb, "ssh"), quote(s.SSHConfig())), 0o755)
}

// SSHConfig is the path of a client configuration that knows host "source".
func (s *SSHD) SSHConfig() string { return s.path("ssh_config") }

// KnownHosts is the path of the client's known_hosts file.
func (s *SSHD) KnownHosts() string { return s.path("known_hosts") }

// AuthorizedKeys is the path of the server's authorized_keys file.
func (s *SSHD) AuthorizedKeys() string { return s.path("authorized_keys") }

// Target names dir on the server as a lowerdir: "source:/dir".
func (s *SSHD) Target(dir string) string { return s.Alias + ":" + dir }

// BinDir holds an `ssh` that reads SSHConfig and no other configuration.
func (s *SSHD) BinDir() string { return s.path("bin") }

// Env returns the environment of this process with BinDir first in PATH.
func (s *SSHD) Env() []string {
	return append(os.Environ(), "PATH="+s.BinDir()+":"+os.Getenv("PATH"))
}

// UseForTest puts BinDir first in this process's PATH until the test ends.
func (s *SSHD) UseForTest(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", s.BinDir()+":"+os.Getenv("PATH"))
}

// Start starts the server, on the same port as before, and returns when it
// answers.
func (s *SSHD) Start() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return
	}
	args := []string{Program(s.tb, "sshd"), "-D", "-e", "-f", s.path("sshd_config")}
	cmd := s.cfg.Host.command(args...)
	log, err := os.OpenFile(s.path("sshd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := Start(cmd)
	if err != nil {
		s.tb.Fatalf("sshd: %v", err)
	}
	s.proc = proc
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		out, err := s.ssh("true")
		if err == nil {
			return
		}
		if proc.WaitFor(0) || time.Now().After(end) {
			s.tb.Fatalf("sshd does not answer: %v\n%s\n%s", err, out, s.ServerLog())
		}
	}
}

// OtherHostKey gives the server, which must not run, a host key that no client
// knows. What it returns gives it the old one back.
func (s *SSHD) OtherHostKey() (restore func()) {
	s.tb.Helper()
	rename := func(from, to string) {
		for _, suffix := range []string{"", ".pub"} {
			if err := os.Rename(s.path(from+suffix), s.path(to+suffix)); err != nil {
				s.tb.Fatal(err)
			}
		}
	}
	rename("host_key", "host_key.right")
	Run(s.tb, Program(s.tb, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", s.path("host_key"))
	return func() {
		rename("host_key", "host_key.wrong")
		rename("host_key.right", "host_key")
	}
}

// Passphrase locks the client's key: from then on only who knows the passphrase
// can log in.
func (s *SSHD) Passphrase(secret string) {
	s.tb.Helper()
	Run(s.tb, Program(s.tb, "ssh-keygen"), "-q", "-p", "-P", "", "-N", secret, "-f", s.path("id"))
}

// ssh runs a command on the server, not through the proxy. It takes any host key.
func (s *SSHD) ssh(command string) (string, error) {
	args := []string{Program(s.tb, "ssh"), "-F", s.SSHConfig(), "-oBatchMode=yes", "-oConnectTimeout=5",
		"-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR",
		"-oHostName=" + s.addr, "-p", strconv.Itoa(s.Port), "source", command}
	out, err := s.cfg.Host.command(args...).CombinedOutput()
	return string(out), err
}

// Stop ends the server as a shutdown of its service does: nobody new gets in,
// connections stay.
func (s *SSHD) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return
	}
	s.proc.Signal(15)
	_ = s.proc.Wait()
	s.proc = nil
}

// Kill ends the server and every connection of it at once.
func (s *SSHD) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return
	}
	s.proc.KillTree()
	s.proc = nil
}

// Sessions returns the pids of what serves connections now, sftp-servers
// included.
func (s *SSHD) Sessions() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	return Descendants(s.proc.Pid)
}

// ServerLog returns what sshd itself has logged.
func (s *SSHD) ServerLog() string {
	b, _ := os.ReadFile(s.path("sshd.log"))
	return string(b)
}

// LogFile is the path of the log of the sftp-servers.
func (s *SSHD) LogFile() string { return s.path("sftp.log") }

// Request is one SFTP request that the server has logged.
type Request struct {
	Op   string // "open", "read", "lstat", "stat", "fstat", "opendir", "readdir", "readlink", "write", ...
	Path string // as the server quotes it
	Off  int64  // of reads and writes
	Len  int64  // of reads and writes, as asked for
}

var (
	logRead = regexp.MustCompile(`^debug1: request \d+: (read|write) "(.*)" \(handle \d+\) off (\d+) len (\d+)$`)
	logPath = regexp.MustCompile(`^(?:debug1: |debug3: )?(?:request \d+: )?([a-z]+)(?: name)? "(.*?)"(?: |$)`)
)

// Requests returns the requests that the server has served since the start or
// the last ForgetRequests, oldest first. The server logs a request before it
// answers it, so whatever a client has is in here.
func (s *SSHD) Requests() []Request {
	s.tb.Helper()
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		s.tb.Fatal(err)
	}
	var all []Request
	for line := range strings.SplitSeq(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if m := logRead.FindStringSubmatch(line); m != nil {
			off, _ := strconv.ParseInt(m[3], 10, 64)
			n, _ := strconv.ParseInt(m[4], 10, 64)
			all = append(all, Request{m[1], m[2], off, n})
		} else if m := logPath.FindStringSubmatch(line); m != nil {
			all = append(all, Request{Op: m[1], Path: m[2]})
		}
	}
	return all
}

// ForgetRequests empties the log of the sftp-servers.
func (s *SSHD) ForgetRequests() {
	s.tb.Helper()
	if err := os.Truncate(s.LogFile(), 0); err != nil {
		s.tb.Fatal(err)
	}
}

// Opened returns the paths of the files that clients have opened, without
// repetitions, in the order of the first time.
func (s *SSHD) Opened() []string {
	s.tb.Helper()
	var paths []string
	seen := map[string]bool{}
	for _, r := range s.Requests() {
		if r.Op == "open" && !seen[r.Path] {
			seen[r.Path] = true
			paths = append(paths, r.Path)
		}
	}
	return paths
}

// BytesRead returns how many bytes of the file clients have asked for, by path;
// those they asked for twice count twice, and those beyond its end count.
func (s *SSHD) BytesRead() map[string]int64 {
	s.tb.Helper()
	n := map[string]int64{}
	for _, r := range s.Requests() {
		if r.Op == "read" {
			n[r.Path] += r.Len
		}
	}
	return n
}

func sftpServer(tb testing.TB) string {
	tb.Helper()
	for _, p := range []string{
		"/usr/lib/openssh/sftp-server",     // Debian
		"/usr/libexec/openssh/sftp-server", // Fedora
		"/usr/lib/ssh/sftp-server",         // SUSE, Arch
	} {
		if p, err := exec.LookPath(p); err == nil {
			return p
		}
	}
	tb.Fatal("OpenSSH's sftp-server is not installed: run make deps")
	return ""
}

func listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
