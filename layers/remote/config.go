package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Config says which directory to use and how to reach it.
type Config struct {
	Target Target

	// SSHCommand is the ssh program, by default "ssh". It is one path or name,
	// not a command line.
	SSHCommand string

	// SSHConfig is a file for ssh's -F, SSHOptions are values for its -o. When
	// the daemon runs as root and SSHAs is empty, the file must belong to root
	// and be writable by nobody else: what it names is executed as root.
	SSHConfig  string
	SSHOptions []string

	// SSHAs is the user that ssh runs as, if not the daemon's own. Only root
	// can choose.
	SSHAs string

	// Hides is a directory that is going to be mounted over, "" if none is. What ssh
	// needs must not lie in it: ssh is started anew whenever a connection breaks,
	// and would wait for itself.
	Hides string

	// ControlDir is where Login leaves connections that a person has made, in a
	// directory for each user that ssh runs as. Nobody but that user and root may
	// be able to rename what is in ControlDir. Without it there are none.
	ControlDir string

	// Timeout is how long a request waits for a source that does not answer,
	// by default 60 s. After half of it a server that is silent is given up and
	// called again.
	Timeout time.Duration

	// Hard makes requests wait for the source as long as their context lets
	// them, and not only for Timeout.
	Hard bool

	// Connections is how many ssh connections there may be at once, by default
	// 6: one for requests that somebody waits for, one for small files and
	// listings, the others for the background, made when they are needed. A
	// server that refuses some is used with those it grants.
	Connections int

	// ConnectTimeout bounds the TCP connection, and the silence of a server of
	// which a new connection asks what it is; by default 20 s. A whole login may
	// take twice as long.
	ConnectTimeout time.Duration

	// UID and GID, if not nil, replace every owner that the source reports; with
	// IDMap, those that this host does not know.
	UID, GID *uint32

	// IDMap gives files the owners here that have the names of those on the source,
	// in ACLs too. Who is not known here is UID and GID, by default 65534.
	IDMap bool

	// NoGroup takes the group's rights off every file, unless the server shows ACLs:
	// under one, they are its mask, and may be more than the group has.
	NoGroup bool

	// Rebase has absolute symlinks that lead into the layer lead there within it.
	Rebase bool

	// Server is the command that ssh runs on the source to be the SFTP server,
	// instead of the subsystem: a program and arguments, in plain words. ServerAuto
	// tries our own and falls back.
	Server string

	// Logger gets what no caller sees: lost and new connections, names left
	// out. By default nothing is logged.
	Logger *slog.Logger

	dial   dialer // tests put their own server here
	pace   pace
	far    time.Duration // by default farAway; 0 where there are many CPUs
	idle   time.Duration // by default laneIdle
	master func() string // tells the connection that a person has made from the next one; "" without one
}

// A dialer starts a connection. It is called on a thread that lives as long as
// the layer.
type dialer func(ctx context.Context) (transport, error)

// pace is when connections are tried again.
type pace struct {
	first, most time.Duration // between attempts, doubling
	refusal     time.Duration // at least, after a server turned us away; doubling
	mostRefusal time.Duration // where that ends
	again       time.Duration // at most, after a connection that worked was lost
	healthy     time.Duration // a connection that lasted so long starts the doubling anew
	lane        time.Duration // between attempts to have one more connection, doubling
	look        time.Duration // between looks whether a person has logged in
}

var defaultPace = pace{
	first: time.Second, most: time.Minute, refusal: 15 * time.Second, mostRefusal: 5 * time.Minute, again: 2 * time.Second, healthy: 30 * time.Second,
	lane: time.Minute, look: time.Second,
}

// fill checks c and puts the defaults in.
func (c *Config) fill() error {
	if _, err := ParseTarget(c.Target.String()); err != nil {
		return err
	}
	if err := checkServer(c.Server); err != nil {
		return err
	}
	if c.SSHCommand == "" {
		c.SSHCommand = "ssh"
	}
	if c.Timeout <= 0 {
		c.Timeout = time.Minute
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 20 * time.Second
	}
	if c.Connections <= 0 {
		c.Connections = defaultConnections
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.pace == (pace{}) {
		c.pace = defaultPace
	}
	if c.idle == 0 {
		c.idle = laneIdle
	}
	if c.far == 0 && runtime.NumCPU() < manyCPUs {
		c.far = farAway
	}
	if c.pace.again <= 0 {
		c.pace.again = c.pace.most
	}
	if c.pace.mostRefusal <= 0 {
		c.pace.mostRefusal = c.pace.refusal
	}
	if c.pace.look <= 0 {
		c.pace.look = defaultPace.look
	}
	if c.master == nil {
		c.master = func() string { return "" }
	}
	for _, o := range c.SSHOptions {
		if strings.ContainsAny(o, "\n\x00") || o == "" {
			return fmt.Errorf("ssh option %q: write it as in ssh_config, KEY=VALUE on one line", o)
		}
	}
	if c.SSHAs != "" && os.Geteuid() != 0 {
		return errors.New("ssh_as: only root can run ssh as another user: mount as that user, or leave the option out")
	}
	if c.SSHConfig != "" {
		var err error
		if c.SSHConfig, err = filepath.Abs(c.SSHConfig); err != nil {
			return err
		}
	}
	if c.SSHConfig != "" && c.SSHAs == "" && os.Geteuid() == 0 {
		return checkRootConfig(c.SSHConfig)
	}
	return nil
}

// checkRootConfig refuses to read a configuration as root that is not root's.
func checkRootConfig(name string) error {
	fi, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("ssh configuration: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("ssh configuration %q is not root's alone: what it names would run as root; "+
			"chown it to root and chmod go-w it, or give ssh_as=USER", name)
	}
	return nil
}

// sshArgs returns the arguments of ssh before the host, for one that asks nobody
// and goes over the connection of a master, if there is one.
func (c *Config) sshArgs(master string) []string {
	if master == "" {
		master = "none"
	}
	return append([]string{"-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=" + master}, c.commonArgs()...)
}

// commonArgs returns the arguments of every ssh. For every option ssh takes the
// first value it sees, so nothing in c can undo what stands first.
func (c *Config) commonArgs() []string {
	alive := max(1, int(min(c.Timeout/4, 15*time.Second)/time.Second))
	args := []string{
		"-a", "-x",
		"-oClearAllForwardings=yes",
		"-oPermitLocalCommand=no",
		"-oRemoteCommand=none",
		"-oRequestTTY=no",
	}
	if c.SSHConfig != "" {
		args = append(args, "-F", c.SSHConfig)
	}
	for _, o := range c.SSHOptions {
		args = append(args, "-o"+o)
	}
	args = append(args,
		"-oServerAliveInterval="+strconv.Itoa(alive),
		"-oServerAliveCountMax=3",
		"-oConnectTimeout="+strconv.Itoa(max(1, int(c.ConnectTimeout/time.Second))),
	)
	if c.Target.Port != 0 {
		args = append(args, "-p", strconv.Itoa(c.Target.Port))
	}
	if c.Target.User != "" {
		args = append(args, "-l", c.Target.User)
	}
	return args
}
