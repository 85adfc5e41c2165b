package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/remote/server"
)

// sftpServerFlags are the flags of migratefs sftp-server: those of OpenSSH's, as far
// as they make sense here.
type sftpServerFlags struct {
	dir      string
	readOnly bool
	stderr   bool
	facility string
	level    string
	umask    string
}

func newSFTPServerCommand() *cobra.Command {
	var f sftpServerFlags
	c := &cobra.Command{
		Use:   "sftp-server [-R] [-d DIR] [-e] [-f FACILITY] [-l LEVEL] [-u UMASK]",
		Short: "Serve files over SFTP on standard input and output, for sshd to run",
		Long: `Serve SFTP version 3 on standard input and output, as OpenSSH's sftp-server does, to any SFTP client. A migratefs
client (-o sftp_server='migratefs sftp-server') sees what SFTP does not show: times with nanoseconds, inodes and hard
links, extended attributes and ACLs, holes.

In sshd_config it is a Subsystem, or, for a key or an account that shall do nothing else,

  ForceCommand migratefs sftp-server -R -d /data`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(os.Stdin, os.Stdout) },
	}
	fl := c.Flags()
	fl.StringVarP(&f.dir, "dir", "d", "", "serve this directory, and nothing outside of it")
	fl.BoolVarP(&f.readOnly, "read-only", "R", false, "change nothing")
	fl.BoolVarP(&f.stderr, "stderr", "e", false, "log to standard error instead of syslog")
	fl.StringVarP(&f.facility, "facility", "f", "AUTH", "the facility of syslog: DAEMON, USER, AUTH, LOCAL0 to LOCAL7")
	fl.StringVarP(&f.level, "level", "l", "ERROR", "what is logged: QUIET, FATAL, ERROR, INFO, VERBOSE, DEBUG, DEBUG1 to DEBUG3")
	fl.StringVarP(&f.umask, "umask", "u", "", "the umask, in octal")
	return c
}

func (f *sftpServerFlags) run(in io.Reader, out io.Writer) error {
	log, err := f.logger()
	if err != nil {
		return err
	}
	if f.umask != "" {
		mask, err := strconv.ParseUint(f.umask, 8, 12)
		if err != nil || mask > 0o777 {
			return usageErrorf("sftp-server: -u %q: give an octal number up to 777", f.umask)
		}
		unix.Umask(int(mask))
	}
	// What a peer that went away leaves is an error of write(2), which ends us.
	err = server.Serve(context.Background(), in, out, server.Config{Dir: f.dir, ReadOnly: f.readOnly, Logger: log})
	if err != nil {
		log.Error("session ends", "err", err)
		return fmt.Errorf("sftp-server: %w", err)
	}
	log.Info("session ends")
	return nil
}

// sftpLevels are the levels of OpenSSH, QUIET apart.
var sftpLevels = map[string]slog.Level{
	"FATAL": slog.LevelError, "ERROR": slog.LevelError,
	"INFO": slog.LevelInfo, "VERBOSE": slog.LevelInfo,
	"DEBUG": slog.LevelDebug, "DEBUG1": slog.LevelDebug, "DEBUG2": slog.LevelDebug, "DEBUG3": slog.LevelDebug,
}

var sftpFacilities = map[string]syslog.Priority{
	"DAEMON": syslog.LOG_DAEMON, "USER": syslog.LOG_USER, "AUTH": syslog.LOG_AUTH,
	"LOCAL0": syslog.LOG_LOCAL0, "LOCAL1": syslog.LOG_LOCAL1, "LOCAL2": syslog.LOG_LOCAL2, "LOCAL3": syslog.LOG_LOCAL3,
	"LOCAL4": syslog.LOG_LOCAL4, "LOCAL5": syslog.LOG_LOCAL5, "LOCAL6": syslog.LOG_LOCAL6, "LOCAL7": syslog.LOG_LOCAL7,
}

func (f *sftpServerFlags) logger() (*slog.Logger, error) {
	name := strings.ToUpper(f.level)
	level, ok := sftpLevels[name]
	if !ok && name != "QUIET" {
		return nil, usageErrorf("sftp-server: -l %q: give QUIET, FATAL, ERROR, INFO, VERBOSE or DEBUG", f.level)
	}
	facility, known := sftpFacilities[strings.ToUpper(f.facility)]
	if !known {
		return nil, usageErrorf("sftp-server: -f %q: give DAEMON, USER, AUTH, or LOCAL0 to LOCAL7", f.facility)
	}
	var w io.Writer = os.Stderr
	switch {
	case !ok:
		w = io.Discard
	case !f.stderr:
		s, err := syslog.New(facility|syslog.LOG_INFO, "sftp-server")
		if err != nil {
			w = io.Discard // as with OpenSSH: no log is no reason not to serve
		} else {
			w = s
		}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), nil
}
