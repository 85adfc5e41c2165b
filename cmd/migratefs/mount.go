package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/internal/sys"
)

// mountCommand is migratefs without a subcommand.
type mountCommand struct {
	options    []string
	foreground bool
	debug      bool
	helper     bool

	point  string
	opts   *options
	daemon bool   // in the background
	leash  *leash // of a restore that is being made
	log    *control.Log
}

func (m *mountCommand) args(_ *cobra.Command, args []string) error {
	if m.helper {
		if len(args) != 2 {
			return usageErrorf("mount helper: want SOURCE MOUNTPOINT, got %q", args)
		}
		// By it 'mount -a' knows that a line of fstab is mounted already.
		m.options = append([]string{"fsname=" + escapeOption(args[0])}, m.options...)
		args = args[1:]
	}
	switch len(args) {
	case 0:
		return usageErrorf("no mountpoint: migratefs -o lowerdir=...,upperdir=... MOUNTPOINT")
	case 1:
		m.point = args[0]
		return nil
	}
	return usageErrorf("one mountpoint, please: got %q", args)
}

func (m *mountCommand) run() error {
	opts, err := parseOptions(m.options)
	if err != nil {
		return err
	}
	m.opts = opts
	if opts.remount {
		return m.remount()
	}
	if m.foreground || m.debug || os.Getenv(readyEnv) != "" {
		return m.serve()
	}
	return m.background()
}

// readyEnv names the descriptor on which a daemon in the background tells the
// command that started it how the mount went.
const readyEnv = "MIGRATEFS_READY_FD"

// background starts this program anew as a daemon and waits until the mount is
// ready or has failed.
func (m *mountCommand) background() error {
	daemon, text, err := startDaemon(context.Background(), m.arguments(), nil)
	if err != nil {
		return err
	}
	if text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	return daemon.Release()
}

// startDaemon starts this program as the daemon that the arguments say, and
// returns it, and what it says of its mount, when that is ready. When ctx ends,
// the daemon is asked to undo what it did. Leash, if not nil, is the end for the daemon.
func startDaemon(ctx context.Context, args []string, leash *os.File) (daemon *os.Process, text string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = filepath.Join(filepath.Dir(self), "migratefs") // not as what a copy of it is called, such as mount.migratefs
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	if leash != nil {
		cmd.Env = append(cmd.Env, leashEnv+"=4")
		cmd.ExtraFiles = append(cmd.ExtraFiles, leash)
	}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, "", err
	}
	w.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	answer, err := io.ReadAll(bufio.NewReader(io.LimitReader(r, 64<<10)))
	stop()
	if err != nil {
		return nil, "", err
	}
	code, text, _ := strings.Cut(string(answer), " ")
	n, err := strconv.Atoi(code)
	if err != nil {
		_ = cmd.Wait()
		return nil, "", mountErrorf("the daemon ended before the mount was ready (%v)", cmd.ProcessState)
	}
	if n == exitOK {
		return cmd.Process, text, nil
	}
	_ = cmd.Wait()
	return nil, "", &codeError{n, errors.New(text)}
}

func (m *mountCommand) arguments() (args []string) {
	for _, o := range m.options {
		args = append(args, "-o", o)
	}
	return append(args, "--", m.point)
}

// serve mounts and serves until the mount ends.
func (m *mountCommand) serve() error {
	m.daemon = os.Getenv(readyEnv) != ""
	m.leash = leashFromEnv()
	tell := announcer()
	err := m.mountAndServe(tell)
	if err != nil {
		var ce *codeError
		code := exitFailure
		if errors.As(err, &ce) {
			code = ce.code
		}
		if tell(code, oneLine(err.Error())) {
			return &codeError{code, errors.New("")}
		}
	}
	return err
}

// announcer returns a function that tells the waiting command how the mount
// went, once; it reports whether there was one to tell.
func announcer() func(code int, text string) bool {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return func(code int, text string) bool {
			if code == exitOK && text != "" {
				fmt.Fprintln(os.Stderr, text)
			}
			return false
		}
	}
	os.Unsetenv(readyEnv)
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ready")
	return func(code int, text string) bool {
		if f == nil {
			return false
		}
		fmt.Fprintf(f, "%d %s", code, text)
		f.Close()
		f = nil
		return true
	}
}

func (m *mountCommand) mountAndServe(tell func(int, string) bool) error {
	log, err := m.logger(m.daemon)
	if err != nil {
		return asMountError(err)
	}
	for _, n := range m.opts.notes {
		log.Info(n)
	}
	unix.Umask(0)
	if isRoot() {
		if err := sys.DropCapability(unix.CAP_SYS_RESOURCE); err != nil {
			log.Debug("CAP_SYS_RESOURCE is kept: root's writes may exceed quotas", "cause", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	ctx, letGo := m.leash.context(ctx)
	group := startedIn(m.daemon)
	point, err := findPoint(m.point, log)
	group.leave()
	var st *stack
	if err == nil {
		st, err = openStack(ctx, m.opts, point, log)
	}
	signals := make(chan os.Signal, 2) // from before the other ends, or what comes in between would kill us
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	if err == nil && ctx.Err() != nil {
		st.abandon()
		err = errors.New("interrupted")
	}
	letGo()
	stop()
	if err != nil {
		return asMountError(err)
	}
	group.rejoin()
	server, err := m.mount(st)
	if err != nil {
		st.abandon()
		return asMountError(fmt.Errorf("mount on %q: %w", st.point, notAllowed(err)))
	}
	images, err := m.showImages(st)
	if err != nil {
		_ = server.Unmount()
		st.abandon()
		return asMountError(err)
	}
	defer images.end()
	useProcessors()
	keepHeapSmall()
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		_ = server.Unmount()
		return asMountError(fmt.Errorf("mount on %q: %w", st.point, err))
	}
	m.readAhead(st.point, log)
	unregister := register(st.point, st.dirs)
	defer unregister()
	defer noteOptions(st.point, m.options)()
	endControl := m.serveControl(st, log)
	if err := nameUmountHelper(m.opts.fsName, st.point); err != nil {
		log.Debug("umount(8) will not wait for this daemon", "cause", err)
	}
	endOnSignal(signals, st.point, log)
	m.leash.orElse(func() { _ = unix.Kill(os.Getpid(), unix.SIGTERM) })
	m.foretell(st)
	_ = os.Chdir("/")
	notifySystemd("READY=1")
	group.end()
	tell(exitOK, st.summary())
	if m.daemon {
		detachStdio()
	}
	server.Wait()
	endControl()
	images.end()
	shareLock(st.lock)
	notifySystemd("STOPPING=1")
	if err := st.close(); err != nil {
		return fmt.Errorf("unmount %q: %w", st.point, err)
	}
	if m.leash.isLost() {
		_ = forgetRestore(st.point) // nobody else will
	}
	return nil
}

// mount makes the mount, by mount(2) as root and by fusermount3 else.
func (m *mountCommand) mount(st *stack) (*fuse.Server, error) {
	o := m.opts
	root := isRoot()
	entry, _ := st.fs.Timeouts()
	mo := &fuse.MountOptions{
		Name:                 "migratefs",
		FsName:               o.fsName,
		AllowOther:           root || o.allowOther != nil,
		DirectMountStrict:    root,
		DirectMountFlags:     unix.MS_MGC_VAL, // no flags but those in Options: zero would mean nosuid, nodev
		Options:              []string{"default_permissions"},
		EnableAcl:            !o.noACL && !o.asCaller, // the kernel would check permissions too
		EnableLocks:          true,
		MaxWrite:             1 << 20,
		MaxBackground:        64,
		EnableSymlinkCaching: st.fs.LocalOnly(),
		// Else the kernel drops its pages when it learns the mtime of its own write;
		// a page read anew then while another write is under way stays without it.
		ExplicitDataCacheControl: st.fs.Alone(),
		ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_NO_EXPORT_SUPPORT,
	}
	if m.debug {
		(&control.Mount{FS: st.fs, Layers: st.shown, Log: m.log}).Trace(true)
	}
	if entry == 0 {
		// Names that are not kept are asked for again at once: their attributes go
		// with the first part of a listing only.
		mo.ExtraCapabilities |= fuse.CAP_READDIRPLUS_AUTO
	}
	if o.noPass || !root {
		// With it the mount counts as stacked, and fewer can be put on top.
		mo.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	if o.localFlock {
		mo.DisabledCapabilities |= fuse.CAP_FLOCK_LOCKS
	}
	if o.localFcntl {
		mo.DisabledCapabilities |= fuse.CAP_POSIX_LOCKS
	}
	if st.fs.ReadOnly() || o.readOnly {
		if root {
			mo.DirectMountFlags |= unix.MS_RDONLY
		} else {
			mo.Options = append(mo.Options, "ro")
		}
	}
	if o.asCaller {
		mo.Options = nil
		// The kernel opens devices, FIFOs and sockets without asking us, and so
		// without anybody's looking at their mode.
		mo.DirectMountFlags |= unix.MS_NODEV
	}
	mo.DirectMountFlags |= o.mountBits
	if o.maxWrite > 0 {
		mo.MaxWrite = o.maxWrite
	}
	if o.maxBackground > 0 {
		mo.MaxBackground = o.maxBackground
	}
	mo.MaxReadAhead = o.maxReadahead
	mo.Options = append(mo.Options, st.flags(o.flags)...)
	if err := fuseThere(); err != nil {
		return nil, err
	}
	var server *fuse.Server
	said, err := saidOf(func() (err error) {
		server, err = fuse.NewServer(st.fs.Raw(), st.point, mo)
		return err
	})
	if err != nil && said != "" {
		err = errors.New(said) // by fusermount3, of which err has the exit code
	}
	return server, err
}

// withoutFUSE is what to do where there is no /dev/fuse.
const withoutFUSE = "load the module (modprobe fuse); in a container, give it the device: --device /dev/fuse"

// fuseThere looks whether /dev/fuse can be opened. Who is not root has fusermount3 do
// that, which says why it cannot.
func fuseThere() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	} else if isRoot() || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("/dev/fuse: %w: %s", err, withoutFUSE)
	}
	return nil
}

// saidOf returns what programs write to standard error while do runs.
func saidOf(do func() error) (said string, err error) {
	fd, merr := unix.MemfdCreate("said", unix.MFD_CLOEXEC)
	if merr != nil {
		return "", do()
	}
	f := os.NewFile(uintptr(fd), "said")
	defer f.Close()
	was := os.Stderr
	os.Stderr = f
	err = do()
	os.Stderr = was
	b := make([]byte, 4<<10)
	n, _ := f.ReadAt(b, 0)
	return strings.TrimSpace(string(b[:n])), err
}

// notAllowed adds to mount(2)'s error what root lacks in a container.
func notAllowed(err error) error {
	if isRoot() && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		return fmt.Errorf("%w: root needs CAP_SYS_ADMIN; in a container --cap-add SYS_ADMIN, and no seccomp or AppArmor profile that refuses mount(2)", err)
	}
	return err
}

// localReadAhead is how far the kernel reads ahead of who reads a file from
// beginning to end, in KiB, where all layers are local: the most that a pipe carries
// beside the header of an answer (/proc/sys/fs/pipe-max-size). FUSE's own 128 make
// eight requests of it.
const localReadAhead = 1016

// readAhead raises the kernel's limit, which a FUSE server can only lower. What
// cannot be raised (no root, a /sys that is read-only) stays as it is; so it does
// with a source, of which no more is to be fetched than is read.
func (m *mountCommand) readAhead(point string, log *slog.Logger) {
	if m.opts.maxReadahead != 0 || m.opts.criu != "" {
		return
	}
	for _, l := range m.opts.lowers {
		if l.remote {
			return
		}
	}
	all, err := mounts()
	for _, mnt := range slices.Backward(all) {
		if err == nil && mnt.point == point && mnt.fsType == fsType {
			err = os.WriteFile("/sys/class/bdi/"+mnt.dev+"/read_ahead_kb", strconv.AppendInt(nil, localReadAhead, 10), 0)
			break
		}
	}
	if err != nil {
		log.Debug("read-ahead stays at the kernel's", "cause", err)
	}
}

// minProcs is how many threads of this program may run Go code at least.
const minProcs = 8

// useProcessors has the runtime keep more threads ready than a small host has
// processors. One that waits in read(2) for a request counts as running for 10 ms,
// as long as another is idle. Where none is, the runtime's monitor takes its turn
// away after 20 us, wakes up for that each time, and the next request begins by
// getting it back: on two processors up to a third of the daemon's time went there.
// It comes after go-fuse has counted processors, and has as many threads wait: of
// many that wait in turn each is woken on another processor, with cold caches.
func useProcessors() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
}

// endOnSignal unmounts on the first of signals. A mount that is in use is taken out
// of sight at the first and served until its last user is gone; a second signal
// ends the daemon.
func endOnSignal(signals <-chan os.Signal, point string, log *slog.Logger) {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	go func() {
		<-signals
		if err := unmount(point, howToUnmount{}); err != nil {
			log.Warn("in use: unmounted lazily, serving until the last user is gone", "mountpoint", point, "cause", err)
			if err := unmount(point, howToUnmount{lazy: true}); err != nil {
				log.Error("not unmounted", "mountpoint", point, "cause", err)
			}
		}
		<-signals
		os.Exit(exitFailure)
	}()
}

// detachStdio lets go of the terminal, or of the pipes of who started us.
func detachStdio() {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(null)
	for fd := range 3 {
		_ = unix.Dup3(null, fd, 0)
	}
}

// notifySystemd tells the service manager, if there is one (sd_notify(3)).
func notifySystemd(state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if addr[0] == '@' {
		addr = "\x00" + addr[1:]
	}
	_ = unix.Sendto(fd, []byte(state), 0, &unix.SockaddrUnix{Name: addr})
}
