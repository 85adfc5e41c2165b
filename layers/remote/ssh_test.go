package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/tests/testbed"
)

// serve makes a directory with one file and a server for it.
func serve(t *testing.T, size int) (s *sshd, dir string, data []byte) {
	t.Helper()
	s, dir, data = startSSHD(t), t.TempDir(), random(3, size)
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return s, dir, data
}

// tasks returns the children of all threads of this process called comm.
func tasks(t *testing.T, comm string) (pids []int) {
	t.Helper()
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range lists {
		b, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(b)) {
			c, _ := os.ReadFile("/proc/" + f + "/comm")
			if pid, err := strconv.Atoi(f); err == nil && strings.TrimSpace(string(c)) == comm {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// The layer's ssh are killed over and over while a large file is read: every byte
// is right all the same.
func TestSSHKilledUnderRead(t *testing.T) {
	t.Run("demand", func(t *testing.T) { killedUnderRead(t, 4, func(ctx context.Context) context.Context { return ctx }) })
	t.Run("background", func(t *testing.T) { killedUnderRead(t, 6, layers.Background) })
}

func killedUnderRead(t *testing.T, logins int64, under func(context.Context) context.Context) {
	s, dir, data := serve(t, 24<<20)
	cfg := s.layer(dir)
	cfg.far = -1 // over several lanes
	l := open(t, cfg)
	f, err := l.Open(soon(t), "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for next := int64(3 << 20); ; {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if l.Stats().WireIn < next {
				continue
			}
			next = l.Stats().WireIn + 5<<20
			for _, pid := range tasks(t, "ssh") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	got := make([]byte, len(data))
	const piece = 2 << 20
	for l.Stats().Connects < logins {
		for off := 0; off < len(data); off += piece {
			n, err := f.ReadAt(under(soon(t)), got[off:off+piece], int64(off))
			if n != piece || err != nil {
				t.Fatalf("at %d: %d, %v", off, n, err)
			}
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("content differs")
	}
}

// A server process that is stopped: ErrOffline within the timeout, ^C at once, and
// everything again when it goes on or a new one answers.
func TestServerStopped(t *testing.T) {
	s, dir, data := serve(t, 1<<20)
	cfg := s.layer(dir)
	cfg.Timeout = 8 * time.Second
	l := open(t, cfg)
	f, err := l.Open(soon(t), "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	servers := children(t, s.server.Process.Pid, "sftp-server")
	if len(servers) != 1 {
		t.Fatalf("%d servers", len(servers))
	}
	must(t, syscall.Kill(servers[0], syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(servers[0], syscall.SIGKILL) })

	ctx, cancel := context.WithCancel(soon(t))
	time.AfterFunc(50*time.Millisecond, cancel)
	b := make([]byte, len(data))
	if n, err := f.ReadAt(ctx, b, 0); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v, want Canceled", n, err)
	}
	// After half the timeout the silent server is given up, and a new one asked.
	if n, err := f.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b[:n], data) {
		t.Errorf("%d, %v", n, err)
	}
	if n := l.Stats().Connects; n != 2 {
		t.Errorf("%d connections", n)
	}

	// The whole of sshd stopped: no new server either.
	must(t, syscall.Kill(s.server.Process.Pid, syscall.SIGSTOP))
	for _, pid := range children(t, s.server.Process.Pid, "sftp-server") {
		must(t, syscall.Kill(pid, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	}
	n, err := f.ReadAt(soon(t), b, 0)
	if n != 0 || !errors.Is(err, layers.ErrOffline) || errors.Is(err, io.EOF) && err == io.EOF {
		t.Errorf("%d, %v, want ErrOffline", n, err)
	}
	if _, err := l.Stat(soon(t), "f"); !errors.Is(err, layers.ErrOffline) || errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ErrOffline", err)
	}
	must(t, syscall.Kill(s.server.Process.Pid, syscall.SIGCONT))
	for l.Offline() != nil {
		time.Sleep(10 * time.Millisecond)
	}
	if n, err := f.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b[:n], data) {
		t.Errorf("afterwards: %d, %v", n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a user gets wrong is one line that names it and says what to do.
func TestMistakes(t *testing.T) {
	s, dir, _ := serve(t, 10)
	write(t, filepath.Join(s.dir, "none"), "")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, "stranger"))
	key, err := os.ReadFile(filepath.Join(s.dir, "stranger.pub"))
	must(t, err)
	write(t, filepath.Join(s.dir, "wrong"), "migratefs-test "+string(key))
	bare := startSSHD(t, "# no subsystem")
	missing := startSSHD(t, "Subsystem sftp /nonexistent/sftp-server")
	noisy := startSSHD(t, "Subsystem sftp /bin/echo Good morning")
	must(t, os.Symlink("f", filepath.Join(dir, "link to a file")))

	for what, c := range map[string]struct {
		change func(*Config)
		is     error
		words  []string
	}{
		"unknown host key": {func(c *Config) { c.SSHConfig = s.write(t, "c1", s.client("none")) }, layers.ErrDenied,
			[]string{"host key of source is not known", "connect once with ssh source"}},
		"changed host key": {func(c *Config) { c.SSHConfig = s.write(t, "c2", s.client("wrong")) }, layers.ErrDenied,
			[]string{"host key of source is not the known one", "ssh-keygen -R source"}},
		"refused login": {func(c *Config) {
			c.SSHOptions = []string{"IdentityFile=" + filepath.Join(s.dir, "stranger")}
			c.SSHConfig = s.write(t, "c3", strings.Replace(s.client("known"), "IdentityFile "+filepath.Join(s.dir, "user"), "", 1))
		},
			layers.ErrDenied, []string{"source refused the login", "ssh -oBatchMode=yes source true", "Permission denied"}},
		"refused port": {func(c *Config) { c.Target.Port = testbed.FreePort(t) }, layers.ErrOffline,
			[]string{"nothing listens on source", "is sshd running there, is the port right?"}},
		"unknown host": {func(c *Config) { c.Target.Host = "no-such-host.invalid" }, layers.ErrOffline,
			[]string{"no-such-host.invalid is not known", "check its spelling"}},
		"wrong path": {func(c *Config) { c.Target.Path = dir + "/none" }, unix.ENOENT,
			[]string{strconv.Quote(dir + "/none"), "no such file or directory on the source", "check the path"}},
		"wrong path, deep": {func(c *Config) { c.Target.Path = dir + "/none/x" }, unix.ENOENT, []string{"check the path"}},
		"path of a file": {func(c *Config) { c.Target.Path = dir + "/f" }, unix.ENOTDIR,
			[]string{"not a directory", "name a directory"}},
		"link to a file": {func(c *Config) { c.Target.Path = dir + "/link to a file" }, unix.ENOTDIR, []string{"name a directory"}},
		"no subsystem": {func(c *Config) { c.SSHConfig = bare.config }, layers.ErrOffline,
			[]string{"source offers no SFTP", "Subsystem sftp"}},
		"no server program": {func(c *Config) { c.SSHConfig = missing.config }, layers.ErrOffline,
			[]string{"ended with status 127", "does the program"}},
		"noise": {func(c *Config) { c.SSHConfig = noisy.config }, layers.ErrCorrupt,
			[]string{`"Good morning\n" instead of SFTP`, "login shell"}},
		"bad option": {func(c *Config) { c.SSHOptions = []string{"NoSuchOption=yes"} }, layers.ErrOffline,
			[]string{"does not understand its configuration", "nosuchoption"}},
		"no ssh": {func(c *Config) { c.SSHCommand = "no-such-ssh" }, exec.ErrNotFound,
			[]string{`"no-such-ssh"`, "install openssh-client"}},
	} {
		t.Run(what, func(t *testing.T) {
			cfg := s.layer(dir)
			c.change(&cfg)
			l, err := New(soon(t), cfg)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if !errors.Is(err, c.is) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line, %v", err, c.is)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\nlacks %q", err, w)
				}
			}
		})
	}
	if left := tasks(t, "ssh"); len(left) != 0 {
		t.Errorf("%d ssh are left", len(left))
	}
}

func (s *sshd) write(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(s.dir, name)
	write(t, name, text)
	return name
}

// A source whose filesystem is unmounted, or whose root is removed, is not an empty
// one.
func TestUnmounted(t *testing.T) {
	s, dir, _ := serve(t, 10)
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	if err := unix.Mount("none", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatalf("mounting a tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	write(t, filepath.Join(mnt, "f"), "text")
	l := open(t, s.layer(mnt))
	a, err := l.Stat(soon(t), "f")
	must(t, err)
	must(t, unix.Unmount(mnt, 0)) // would be EBUSY if the layer held it
	gone := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, layers.ErrReplaced) || errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %v, want ErrReplaced", what, err)
		}
	}
	gone("Stat", second(l.Stat(soon(t), "f")))
	gone("ReadDir", second(l.ReadDir(soon(t), "")))
	gone("Open", second(l.Open(soon(t), "f", &a)))
	must(t, os.Remove(mnt))
	gone("Stat without a root", second(l.Stat(soon(t), "f")))
	gone("ReadDir without a root", second(l.ReadDir(soon(t), "")))
}

// Options reach ssh where they must, and none of them can switch off what keeps
// it from asking, forwarding or sharing.
func TestArguments(t *testing.T) {
	c := Config{
		Target:     Target{User: "u", Host: "h", Port: 22, Path: "/"},
		SSHOptions: []string{"BatchMode=no", "ForwardAgent=yes", "ServerAliveInterval=99"},
		Timeout:    time.Minute, ConnectTimeout: 7 * time.Second,
	}
	must(t, c.fill())
	s, err := newSSH(&c)
	must(t, err)
	set, err := s.settings(soon(t))
	must(t, err)
	for key, want := range map[string]string{
		"batchmode": "yes", "forwardagent": "no", "forwardx11": "no", "controlmaster": "false", "clearallforwardings": "yes",
		"serveraliveinterval": "99", "serveralivecountmax": "3", "connecttimeout": "7", "user": "u", "port": "22", "hostname": "h",
		"requesttty": "false", "permitlocalcommand": "no",
	} {
		if set[key] != want {
			t.Errorf("%s is %q, want %q", key, set[key], want)
		}
	}
	if set["controlpath"] != "" && set["controlpath"] != "none" {
		t.Errorf("controlpath is %q", set["controlpath"])
	}
}

// The ID is about what ssh connects to, not about how it was spelled.
func TestID(t *testing.T) {
	s, dir, _ := serve(t, 10)
	must(t, os.Symlink(dir, dir+".link"))
	t.Cleanup(func() { os.Remove(dir + ".link") })
	first := open(t, s.layer(dir))
	for what, change := range map[string]func(*Config){
		"by symlink":  func(c *Config) { c.Target.Path = dir + ".link" },
		"with a port": func(c *Config) { c.Target.Port = s.port },
		"by address": func(c *Config) {
			c.Target.Host = "127.0.0.1"
			c.SSHConfig = s.write(t, "any", strings.Replace(s.client("known"), "Host source", "Host *", 1))
		},
	} {
		cfg := s.layer(dir)
		change(&cfg)
		if id := open(t, cfg).ID(); id != first.ID() {
			t.Errorf("%s: %q, want %q", what, id, first.ID())
		}
	}
	cfg := s.layer(dir)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	cfg.Target.Path = dir + "/sub"
	if id := open(t, cfg).ID(); id == first.ID() {
		t.Errorf("another directory has the same ID %q", id)
	}
}

// Run as another user, ssh has that user's ids, groups and home, and nothing of
// root's environment.
func TestSSHAs(t *testing.T) {
	s, dir, data := serve(t, 10)
	tmp := t.TempDir()
	must(t, os.Chmod(filepath.Dir(tmp), 0o755))
	must(t, os.Chmod(tmp, 0o777))
	// The test's key and configuration are root's; the wrapper says who it is and
	// then is a server, which is all that matters here.
	wrapper := filepath.Join(tmp, "ssh")
	must(t, os.WriteFile(wrapper, []byte("#!/bin/sh\n{ id; env; } >"+tmp+"/said.$$\nexec "+sftpServer(t)+"\n"), 0o755))
	t.Setenv("SSH_AUTH_SOCK", "/root/agent")
	t.Setenv("SECRET", "of root")
	cfg := s.layer(dir)
	cfg.SSHCommand, cfg.SSHAs, cfg.Connections = wrapper, "nobody", 1
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o755))
	l := open(t, cfg)
	if b, err := content(soon(t), l, "f", len(data)); err != nil || !bytes.Equal(b, data) {
		t.Error(err)
	}
	said, err := filepath.Glob(tmp + "/said.*")
	if err != nil || len(said) == 0 {
		t.Fatal("the wrapper has not run")
	}
	for _, name := range said {
		b, err := os.ReadFile(name)
		must(t, err)
		for _, w := range []string{"uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n", "HOME=/nonexistent\n", "USER=nobody\n"} {
			if !strings.Contains(string(b), w) {
				t.Errorf("%q lacks %q", b, w)
			}
		}
		for _, w := range []string{"SECRET", "SSH_AUTH_SOCK", "root"} {
			if strings.Contains(string(b), w) {
				t.Errorf("%q has %q", b, w)
			}
		}
	}
	cfg.SSHAs = "no-such-user"
	if _, err := New(soon(t), cfg); err == nil || !strings.Contains(err.Error(), `ssh_as="no-such-user"`) {
		t.Errorf("%v", err)
	}
}

// As root, a configuration that somebody else can write is not read.
func TestForeignConfig(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config")
	write(t, name, "")
	for what, spoil := range map[string]func() error{
		"writable": func() error { return os.Chmod(name, 0o666) },
		"foreign":  func() error { return errors.Join(os.Chmod(name, 0o600), os.Chown(name, 65534, 65534)) },
	} {
		must(t, spoil())
		_, err := New(soon(t), Config{Target: Target{Host: "h", Path: "/"}, SSHConfig: name})
		if err == nil || !strings.Contains(err.Error(), "not root's alone") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestMain is also the daemon of TestDiesWithDaemon.
func TestMain(m *testing.M) {
	if config := os.Getenv("REMOTE_TEST_DAEMON"); config != "" {
		daemon(config, os.Getenv("REMOTE_TEST_DIR"))
		return
	}
	os.Exit(m.Run())
}

func daemon(config, dir string) {
	l, err := New(context.Background(), Config{Target: Target{Host: "source", Path: dir}, SSHConfig: config})
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	// Threads come and go; none of them is to take ssh along.
	for range 50 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = l.Stat(context.Background(), "f")
		}()
		<-done
	}
	fmt.Println("up", l.Stats().Connects, err)
	select {}
}

// ssh dies with the daemon, however that dies.
func TestDiesWithDaemon(t *testing.T) {
	s, dir, _ := serve(t, 10)
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "REMOTE_TEST_DAEMON="+s.config, "REMOTE_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "up 1 <nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	var pids []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	for _, name := range lists {
		b, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			pids = append(pids, pid)
		}
	}
	if len(pids) != 1 {
		t.Fatalf("children %v", pids)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for range 6000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("ssh lives on")
}
