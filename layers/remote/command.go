package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

const (
	// ServerAuto as Config.Server tries our own server, and uses the subsystem if
	// the source has none.
	ServerAuto = "auto"

	// ownServer is what it tries.
	ownServer = "migratefs sftp-server -R"
)

// checkServer refuses a command that is not plain words: it goes through a shell on
// the source, and is to mean there what it says here.
func checkServer(command string) error {
	if command == "" || command == ServerAuto {
		return nil
	}
	bad := func(why string) error {
		return fmt.Errorf("sftp_server=%q %s: write a program and its arguments, in words of letters, digits and any of %s", command, why, serverSigns)
	}
	if len(command) > 1000 {
		return bad("is longer than 1000 bytes")
	}
	for i, word := range strings.Split(command, " ") {
		if i == 0 && word != "" && word[0] == '-' {
			return bad("begins with a dash")
		}
		if word == "" {
			return bad("has an empty word")
		}
		for _, c := range []byte(word) {
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
			if !letter && strings.IndexByte(serverSigns, c) < 0 {
				return bad(fmt.Sprintf("holds %q", rune(c)))
			}
		}
	}
	return nil
}

// serverSigns mean nothing to any shell, within a word.
const serverSigns = "/._-+=@:,%"

// noCommands is what ssh says where the source lets nobody run a command.
const noCommands = "exec request failed"

// fallsBack reports whether a first attempt with ServerAuto failed because the source
// does not have the program, or does not let it run: not because of the link or the
// login, which the next would fail by as well.
func fallsBack(err error) bool {
	var e *connectError
	if errors.As(err, &e) {
		return e.ended != 0 || strings.Contains(e.said, noCommands)
	}
	return broken(err)
}

// serverEnded says of a server that was started by name what explain says of the
// subsystem.
func serverEnded(err error, host, command string) error {
	var e *connectError
	if command == "" || !errors.As(err, &e) || e.ended == 0 {
		return err
	}
	said := *e
	said.what = fmt.Sprintf("%q on %s ended with status %d", command, host, e.ended)
	said.remedy = "is it installed there, and in the PATH of a login without a terminal?"
	return &said
}

// connectFirst makes the layer's first connection, and another one to the subsystem
// if it was ours to find out whether the source has our server. What serves then
// serves for the life of the layer.
func (l *Layer) connectFirst(ctx context.Context, s *ssh) (*conn, error) {
	c, err := l.connect(ctx, mainFirst)
	if s == nil || l.cfg.Server != ServerAuto || !fallsBack(err) {
		return c, err
	}
	l.cfg.Logger.Info("the source has no server of ours: its SFTP subsystem is used", "layer", l.name, "err", err)
	s.server = ""
	return l.connect(ctx, mainFirst)
}
