package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Where only a person can log in (a one-time password, a key with a passphrase),
// Login runs an ssh that may ask, in that person's terminal, and that stays as a
// master (ControlMaster in ssh_config(5)) on a socket in Config.ControlDir. Every
// ssh of a layer with the same Config then goes over the master's connection,
// without a login of its own, and a layer that has parked goes on.
//
// An ssh that finds a master goes where that is connected, whatever host it was
// told. So the socket's name is made of everything that says where ssh goes, and
// as whom.

// masterIdle is how long a master stays that nobody uses, in ssh's words.
const masterIdle = "10m"

// plainPath is a path that means the same in ssh's configuration.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9/._-]{0,80}$`)

// socket is where a master is, or would be; "" where none can be.
func (s *ssh) socket() string {
	if s.c.ControlDir == "" {
		return ""
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q", []string{
		s.path, s.c.SSHConfig, fmt.Sprintf("%q", s.c.SSHOptions),
		s.c.Target.User, s.c.Target.Host, strconv.Itoa(s.c.Target.Port),
	}))
	uid, _ := s.ids()
	name := filepath.Join(s.c.ControlDir, strconv.Itoa(uid), hex.EncodeToString(key[:8]))
	if !plainPath.MatchString(name) {
		return ""
	}
	return name
}

// ids is whom ssh runs as.
func (s *ssh) ids() (uid, gid int) {
	if s.as != nil {
		return int(s.as.uid), int(s.as.gid)
	}
	return os.Geteuid(), os.Getegid()
}

// master returns the socket of a master, if one may be listening there, and what
// tells it from the next one; "" if there is none.
func (s *ssh) master() (socket, id string) {
	socket = s.socket()
	var dir, st unix.Stat_t
	if socket == "" || unix.Lstat(filepath.Dir(socket), &dir) != nil || unix.Lstat(socket, &st) != nil {
		return "", ""
	}
	if uid, _ := s.ids(); !private(&dir, uid) || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return "", ""
	}
	return socket, fmt.Sprint(st.Dev, st.Ino, st.Ctim)
}

// private reports whether st is a directory of uid's that is closed to others.
func private(st *unix.Stat_t, uid int) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == uid && st.Mode&0o077 == 0
}

// makeDir makes the directory of the socket.
func (s *ssh) makeDir(socket string) error {
	dir := filepath.Dir(socket)
	for _, above := range []string{filepath.Dir(s.c.ControlDir), s.c.ControlDir} {
		if err := sys.Mkdir(unix.AT_FDCWD, above, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	uid, gid := s.ids()
	if err := sys.Mkdir(unix.AT_FDCWD, dir, 0o700); err == nil {
		// Whose name it is in belongs to us, so it is still what was made.
		if err := sys.Chown(unix.AT_FDCWD, dir, uid, gid); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || !private(&st, uid) {
		return fmt.Errorf("%q must be a directory that belongs to uid %d and is closed to others: remove it", dir, uid)
	}
	return nil
}

// Login logs in with an ssh that may ask questions, on this process's terminal, and
// leaves its connection to the layers of the same Config, those that wait for it
// included. It must not be called from a daemon.
func Login(ctx context.Context, cfg Config) error {
	if err := cfg.fill(); err != nil {
		return err
	}
	s, err := newSSH(&cfg)
	if err != nil {
		return err
	}
	socket := s.socket()
	if socket == "" {
		return errors.New("there is no place for a connection that others can use: set XDG_RUNTIME_DIR to a short path of plain letters")
	}
	if err := s.makeDir(socket); err != nil {
		return err
	}
	// One that is there may hang. Who uses it may go on with it, nobody new does.
	if _, id := s.master(); id != "" {
		_ = s.ask(ctx, socket, "stop")
		_ = sys.Unlink(unix.AT_FDCWD, socket)
	}
	cmd := s.asked("-oControlMaster=yes", "-oControlPath="+socket, "-oControlPersist="+masterIdle, "-f", "-N")
	var said bounded
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, io.MultiWriter(os.Stderr, &said)
	cmd.WaitDelay = time.Second // the master may keep its standard error
	err = runUntil(ctx, cmd)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && cmd.ProcessState == nil:
		return fmt.Errorf("starting %q: %w", s.path, err)
	case !cmd.ProcessState.Success():
		return explain(cfg.Target.Host, said.String(), cmd.ProcessState)
	}
	if err := s.ask(ctx, socket, "check"); err != nil {
		return fmt.Errorf("logged in to %s, but its ssh does not share the connection: %w", cfg.Target.Host, err)
	}
	return nil
}

// asked prepares ssh for a person: what is said to it may be answered on the
// terminal, and it goes on when we end.
func (s *ssh) asked(args ...string) *exec.Cmd {
	cmd := exec.Command(s.path, append(append(args, s.c.commonArgs()...), "--", s.c.Target.Host)...)
	cmd.Dir = "/"
	if s.as != nil {
		cmd.Env = s.as.env()
		for _, name := range []string{"TERM", "LANG", "DISPLAY", "XAUTHORITY", "SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE"} {
			if v, ok := os.LookupEnv(name); ok {
				cmd.Env = append(cmd.Env, name+"="+v)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as.credential()}
	}
	return cmd
}

// ask has a master do what ssh's -O names.
func (s *ssh) ask(ctx context.Context, socket, what string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // a master that is stopped answers nothing
	defer cancel()
	cmd := s.asked("-oControlPath="+socket, "-O", what)
	var said bounded
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	if err := runUntil(ctx, cmd); err != nil {
		return fmt.Errorf("%w: %s", err, lineWith(said.String(), ""))
	}
	return nil
}

// runUntil runs cmd to its end, or kills it when ctx ends.
func runUntil(ctx context.Context, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	return cmd.Wait()
}
