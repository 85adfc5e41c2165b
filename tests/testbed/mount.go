package testbed

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MountConfig says what else a mount needs than its options.
type MountConfig struct {
	Host   *Host    // where; nil: here
	Env    []string // of the daemon; nil: this process's
	Binary string   // nil: BuildRace
	Args   []string // before "-o"; "-f" is always there
}

// Mounted is a running migratefs.
type Mounted struct {
	Point string // the mountpoint, as its host sees it
	Dir   string // the mountpoint, as the test reaches it

	tb   testing.TB
	host *Host
	proc *Process
	log  string // a file: what the daemon printed is there before it does anything else
	over bool   // unmounted or killed by the test
}

// Mount mounts with the given -o options and returns when the mount answers.
// When the test ends it is unmounted; a daemon that then does not end, fails,
// or has raced fails the test.
func Mount(tb testing.TB, options, point string, more ...MountConfig) *Mounted {
	tb.Helper()
	m, err := TryMount(tb, options, point, more...)
	if err != nil {
		tb.Fatalf("migratefs -f -o %s %s: %v\n%s", options, point, err, m.Log())
	}
	return m
}

// TryMount is Mount for mounts that may fail: then err is how the daemon ended.
func TryMount(tb testing.TB, options, point string, more ...MountConfig) (m *Mounted, err error) {
	tb.Helper()
	NeedFUSE(tb)
	var cfg MountConfig
	if len(more) > 0 {
		cfg = more[0]
	}
	binary := cfg.Binary
	if binary == "" {
		binary = BuildRace(tb)
	}
	args := append([]string{binary, "-f"}, cfg.Args...)
	if options != "" {
		args = append(args, "-o", options)
	}
	cmd := cfg.Host.command(append(args, point)...)
	ready := listenReady(tb)
	defer ready.Close()
	cmd.Env = append(cfg.Env, "NOTIFY_SOCKET="+ready.LocalAddr().String())
	if cfg.Env == nil {
		cmd.Env = append(os.Environ(), cmd.Env...)
	}
	m = &Mounted{Point: point, Dir: cfg.Host.Path(point), tb: tb, host: cfg.Host}
	log, err := os.CreateTemp(TempDir(tb), "log")
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	m.log = log.Name()
	cmd.Stdout, cmd.Stderr = log, log
	if m.proc, err = Start(cmd); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(m.cleanup)
	for end := time.Now().Add(patience); !isReady(ready); {
		if m.proc.WaitFor(0) {
			m.over = true
			if err := m.proc.Wait(); err != nil {
				return m, err
			}
			return m, errors.New("the daemon ended without an error and without a mount")
		}
		if time.Now().After(end) {
			tb.Fatalf("waited in vain for the mount on %s\n%s", point, m.Log())
		}
	}
	if _, err := os.Stat(m.Dir); err != nil {
		return m, err
	}
	return m, nil
}

// listenReady makes the socket on which a daemon tells its service manager that
// it is ready (sd_notify(3)). Nothing else tells a new mount from the dead one
// below it: the kernel gives both the same mount id and device.
func listenReady(tb testing.TB) *net.UnixConn {
	tb.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(TempDir(tb), "notify"), Net: "unixgram"}
	c, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// isReady waits a moment for READY=1 and reports whether it came.
func isReady(c *net.UnixConn) bool {
	b := make([]byte, 4096)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := c.Read(b)
	return err == nil && slices.Contains(strings.Split(string(b[:n]), "\n"), "READY=1")
}

// Path returns how the test reaches a path below the mountpoint.
func (m *Mounted) Path(elem ...string) string {
	return filepath.Join(append([]string{m.Dir}, elem...)...)
}

// Pid is the process id of the daemon.
func (m *Mounted) Pid() int { return m.proc.Pid }

// Process is the daemon.
func (m *Mounted) Process() *Process { return m.proc }

// Log is what the daemon has printed.
func (m *Mounted) Log() string {
	if m == nil {
		return ""
	}
	b, err := os.ReadFile(m.log)
	if err != nil {
		m.tb.Error(err)
	}
	return string(b)
}

// Unmount unmounts, as umount(8) does, and waits for the end of the daemon. It
// fails the test if either does not work.
func (m *Mounted) Unmount() {
	m.tb.Helper()
	if m.over {
		return
	}
	m.over = true
	var err error
	// Closing a file is asynchronous in FUSE: busy may be over in a moment.
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err = m.umount()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		m.tb.Errorf("umount %s: %v", m.Point, err)
		_ = m.host.command("umount", "-l", m.Point).Run()
	}
	m.end()
}

// Unmounted says that the test has unmounted by other means than Unmount, and
// waits for the end of the daemon as that does.
func (m *Mounted) Unmounted() {
	m.tb.Helper()
	m.over = true
	m.end()
}

func (m *Mounted) umount() error {
	if m.host == nil {
		return unix.Unmount(m.Point, unix.UMOUNT_NOFOLLOW)
	}
	out, err := m.host.command("umount", m.Point).CombinedOutput()
	if err != nil && strings.Contains(string(out), "busy") {
		return unix.EBUSY
	}
	return err
}

// end waits for the daemon to end, and judges how it did.
func (m *Mounted) end() {
	m.tb.Helper()
	if !m.proc.WaitFor(patience) {
		m.proc.Signal(syscall.SIGQUIT) // its goroutines' stacks
		m.proc.WaitFor(5 * time.Second)
		m.proc.KillTree()
		m.tb.Errorf("the daemon of %s did not end after it was unmounted\n%s", m.Point, m.Log())
		return
	}
	if err := m.proc.Wait(); err != nil {
		m.tb.Errorf("the daemon of %s: %v\n%s", m.Point, err, m.Log())
	} else if strings.Contains(m.Log(), "WARNING: DATA RACE") {
		m.tb.Errorf("the daemon of %s has raced\n%s", m.Point, m.Log())
	}
}

// Kill kills the daemon as kill -9 does. The dead mount stays; the end of the
// test, or RemoveDead, takes it away.
func (m *Mounted) Kill() {
	m.tb.Helper()
	m.over = true
	m.proc.KillTree()
}

// RemoveDead takes a mount away whose daemon was killed.
func (m *Mounted) RemoveDead() {
	m.tb.Helper()
	if out, err := m.host.command("umount", "-l", m.Point).CombinedOutput(); err != nil {
		m.tb.Errorf("umount -l %s: %v: %s", m.Point, err, out)
	}
}

// cleanup ends what the test has left.
func (m *Mounted) cleanup() {
	if !m.over {
		m.Unmount()
	}
	if m.host == nil {
		for range MountsBelow(m.Point) {
			_ = unix.Unmount(m.Point, unix.MNT_DETACH)
		}
	}
}
