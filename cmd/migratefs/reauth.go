package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/remote"
)

// reauthFlags are the flags of migratefs reauth.
type reauthFlags struct{ options []string }

func newReauthCommand() *cobra.Command {
	var f reauthFlags
	c := &cobra.Command{
		Use:   "reauth [-o lowerdir=...] [MOUNTPOINT]",
		Short: "Log in to the source for a mount that may not do so by itself",
		Long: `Log in to the hosts that the lowers of a mount lie on, with an ssh that may ask questions in this terminal. The
mount goes on over that connection: one whose login was refused continues, and with -o lowerdir=user@host:/DIR,
before there is a mount, the next one that is made with these options begins with it. The connection stays until
it breaks, or nobody has used it for ten minutes.`,
		Args: f.args,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.OutOrStdout(), args) },
	}
	c.Flags().StringArrayVarP(&f.options, "options", "o", nil, "the options of a mount that is to be: lowerdir=user@host:/DIR and ssh's")
	return c
}

func (f *reauthFlags) args(_ *cobra.Command, args []string) error {
	if (len(args) == 1) == (len(f.options) > 0) || len(args) > 1 {
		return usageErrorf("migratefs reauth: give a mountpoint, or -o lowerdir=user@host:/DIR; got %q", args)
	}
	return nil
}

func (f *reauthFlags) run(out io.Writer, args []string) error {
	// The terminal's ^C goes to ssh as well, which ends by itself.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	o, err := f.find(args)
	if err != nil {
		return err
	}
	done := 0
	for _, spec := range o.lowers {
		if !spec.remote {
			continue
		}
		cfg, err := o.remoteConfig(spec)
		if err != nil {
			return err
		}
		if err := remote.Login(ctx, cfg); err != nil {
			return fmt.Errorf("source %q: %w", spec.text, err)
		}
		fmt.Fprintf(out, "logged in to %s\n", cfg.Target.Host)
		done++
	}
	if done == 0 {
		return errors.New("no lower of it lies on another host: there is nothing to log in to")
	}
	return nil
}

// find returns the options of the mount that is meant. Nothing in the mount is
// looked at: it may be waiting for us.
func (f *reauthFlags) find(args []string) (*options, error) {
	if len(f.options) > 0 {
		return parseOptions(f.options)
	}
	abs, err := filepath.Abs(args[0])
	if err != nil {
		return nil, err
	}
	m, ok := mountAt(abs)
	if !ok || m.fsType != fsType {
		if m, _, err = mountOver(args[0]); err != nil {
			return nil, err
		}
	}
	return optionsOf(m)
}

// remoteConfig says how to reach the lower that spec names.
func (o *options) remoteConfig(spec lowerSpec) (remote.Config, error) {
	target, err := remote.ParseTarget(spec.text)
	if err != nil {
		return remote.Config{}, &codeError{exitUsage, err}
	}
	return remote.Config{
		Target:     target,
		SSHCommand: o.sshCommand,
		SSHConfig:  o.sshConfig,
		SSHOptions: o.sshOptions,
		SSHAs:      o.sshAs,
		ControlDir: controlDir(),
		Timeout:    o.timeout,
		Hard:       o.hard,
		UID:        o.uid,
		GID:        o.gid,
		IDMap:      o.idmap == "name",
		NoGroup:    o.noGroup,
		Rebase:     o.rebase,
		Server:     o.sftpServer,

		Connections: o.connections,
	}, nil
}

// controlDir is where connections are that a person has made; "" where there is no
// place for them. Root's is open to those that ssh_as= names, each of whom has a
// directory in it.
func controlDir() string {
	if isRoot() {
		return runDir + "-ssh"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "migratefs", "ssh")
	}
	return ""
}
