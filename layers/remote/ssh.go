package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// farewell is how long an ssh whose input ended may take to leave by itself.
	farewell = 250 * time.Millisecond

	// keepErrors is how much of ssh's standard error is remembered, in bytes.
	keepErrors = 4 << 10

	pipeSize = 1 << 20
)

// ssh starts the system's ssh for c.
type ssh struct {
	c    *Config
	path string
	as   *account // nil: as ourselves

	chosen  sync.Once
	ciphers string // an option, or ""; set by chosen

	// server is the command that is run as the server; "" is the subsystem. Only the
	// connector uses it, which makes all connections.
	server string
}

func newSSH(c *Config) (*ssh, error) {
	s := &ssh{c: c, server: c.Server}
	if s.server == ServerAuto {
		s.server = ownServer
	}
	var err error
	if s.path, err = exec.LookPath(c.SSHCommand); err != nil {
		return nil, fmt.Errorf("ssh program %q: %w: install openssh-client, or name it with ssh_command=", c.SSHCommand, err)
	}
	if c.SSHAs != "" {
		if s.as, err = lookupAccount(c.SSHAs); err != nil {
			return nil, err
		}
	}
	return s, s.notHidden()
}

// notHidden returns an error if the mount would hide the program, or the keys and
// the hosts that it knows.
func (s *ssh) notHidden() error {
	home, _ := os.UserHomeDir() // without one there is nothing in it
	if s.as != nil {
		home = s.as.home
	}
	for _, p := range []string{s.path, filepath.Join(home, ".ssh")} {
		real, err := filepath.EvalSymlinks(p)
		if err != nil || s.c.Hides == "" {
			continue // it is not there to be hidden
		}
		if rel, err := filepath.Rel(s.c.Hides, real); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("mountpoint %q would hide %q, which ssh needs to reach %s again: mount somewhere else", s.c.Hides, p, s.c.Target.Host)
		}
	}
	return nil
}

// command prepares ssh with args, for the host of the target.
func (s *ssh) command(args ...string) *exec.Cmd {
	master, _ := s.master()
	return s.bare(append(s.c.sshArgs(master), args...)...)
}

// bare is command without any of our own arguments.
func (s *ssh) bare(args ...string) *exec.Cmd {
	cmd := exec.Command(s.path, append(args, "--", s.c.Target.Host)...)
	cmd.Dir = "/" // no mount is kept busy
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true,
		Pdeathsig: syscall.SIGKILL,
	}
	if s.as != nil {
		cmd.Env = s.as.env()
		cmd.SysProcAttr.Credential = s.as.credential()
	}
	return cmd
}

// settings returns what ssh makes of the target and its configuration: "hostname",
// "port", "user", "hostkeyalias" and more, keys in lower case (ssh -G).
func (s *ssh) settings(ctx context.Context) (map[string]string, error) {
	return s.said(ctx, s.command("-G"))
}

// said returns what cmd, an ssh -G, says.
func (s *ssh) said(ctx context.Context, cmd *exec.Cmd) (map[string]string, error) {
	var out, errs bounded
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return nil, explain(s.c.Target.Host, errs.String(), cmd.ProcessState)
	}
	m := make(map[string]string)
	for line := range strings.Lines(out.String()) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, seen := m[key]; !seen {
			m[key] = value
		}
	}
	return m, nil
}

// bounded keeps the first 64 KiB written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := 64<<10 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// dial starts ssh with the server on the source. The kernel kills the child when the
// thread that started it ends (PR_SET_PDEATHSIG is about threads), so the
// caller's thread must live on.
func (s *ssh) dial(ctx context.Context) (transport, error) {
	s.chosen.Do(func() { s.ciphers = s.quickCiphers(ctx) })
	// "-- HOST" is followed by the subsystem's name, or by a command line.
	args, after := []string{"-s"}, "sftp"
	if s.server != "" {
		args, after = nil, s.server
	}
	if s.ciphers != "" {
		args = append(args, s.ciphers)
	}
	cmd := s.command(args...)
	cmd.Args = append(cmd.Args, after)

	var mine, theirs []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(mine)
			closeAll(theirs)
			return nil, fmt.Errorf("a pipe to ssh: %w", err)
		}
		if i == 0 {
			r, w = w, r
		}
		mine, theirs = append(mine, r), append(theirs, w)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
	// More room between ssh and us means fewer switches; refusal does no harm.
	if raw, err := mine[1].SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	err := cmd.Start()
	closeAll(theirs)
	if err != nil {
		closeAll(mine)
		return nil, fmt.Errorf("starting %q: %w", s.path, err)
	}
	ch := &child{
		host: s.c.Target.Host, server: s.server, cmd: cmd,
		in: mine[0], out: mine[1], errs: mine[2],
		done: make(chan struct{}),
	}
	go ch.reap()
	return ch, nil
}

// child is a running ssh.
type child struct {
	host          string
	server        string // as in ssh
	cmd           *exec.Cmd
	in, out, errs *os.File

	mu     sync.Mutex
	reaped bool

	closing atomic.Bool   // we ended it
	done    chan struct{} // closed when the process is gone and said is complete
	why     error         // set before done is closed
}

func (ch *child) Read(b []byte) (int, error)  { return ch.out.Read(b) }
func (ch *child) Write(b []byte) (int, error) { return ch.in.Write(b) }

// reap waits for the end of ssh and of what it has started.
func (ch *child) reap() {
	pid := ch.cmd.Process.Pid
	said := make(chan string, 1)
	go func() { said <- tail(ch.errs) }()

	// Look without reaping first: while the zombie is there its pid, which is
	// also its process group, cannot be anybody else's.
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	ch.mu.Lock()
	_ = unix.Kill(-pid, unix.SIGKILL) // a ProxyCommand that stayed behind
	_ = ch.cmd.Wait()
	ch.reaped = true
	ch.mu.Unlock()

	_ = ch.errs.SetReadDeadline(time.Now().Add(farewell))
	text := <-said
	ch.errs.Close()
	if ch.closing.Load() {
		if e := known(ch.host, text); e != nil {
			ch.why = e
		}
	} else {
		ch.why = serverEnded(explain(ch.host, text, ch.cmd.ProcessState), ch.host, ch.server)
	}
	close(ch.done)
}

// tail reads r to its end and returns the last keepErrors bytes.
func tail(r io.Reader) string {
	var keep []byte
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		keep = append(keep, buf[:n]...)
		if len(keep) > keepErrors {
			keep = append(keep[:0], keep[len(keep)-keepErrors:]...)
		}
		if err != nil {
			return string(keep)
		}
	}
}

// Close ends ssh: politely, so that the server sees the end of its input, and
// by force if that takes too long.
func (ch *child) Close() error {
	ch.in.Close()
	select {
	case <-ch.done:
	case <-time.After(farewell):
		ch.closing.Store(true)
		ch.mu.Lock()
		if !ch.reaped {
			_ = unix.Kill(-ch.cmd.Process.Pid, unix.SIGKILL)
		}
		ch.mu.Unlock()
		<-ch.done
	}
	ch.out.Close()
	return ch.why
}
