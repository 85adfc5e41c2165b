package remote

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/migratefs/migratefs/layers"
)

// verdict is what a failed connection means for the next one.
type verdict int

const (
	verdictLost    verdict = iota // the network's fault: try again soon
	verdictRefused                // the server turned us away: try again, not soon
	verdictDenied                 // login or host key refused: wait for a person
)

// connectError says why ssh could not connect, or stopped.
type connectError struct {
	verdict verdict
	what    string // what failed, on which host
	remedy  string // may be empty
	said    string // the line of ssh it was made from; may be empty
	ended   int    // the status that the server ended with, if that is what happened
}

func (e *connectError) Error() string {
	s := e.what
	if e.remedy != "" {
		s += ": " + e.remedy
	}
	if e.said != "" {
		s += fmt.Sprintf(" (ssh says %s)", strconv.Quote(e.said))
	}
	return s
}

func (e *connectError) Unwrap() error {
	if e.verdict == verdictDenied {
		return layers.ErrDenied
	}
	return layers.ErrOffline
}

// sayings is what OpenSSH's ssh prints on its standard error, most telling
// first. %[1]s is the host.
var sayings = []struct {
	text    string
	verdict verdict
	what    string
	remedy  string
}{
	{"REMOTE HOST IDENTIFICATION HAS CHANGED", verdictDenied, "the host key of %[1]s is not the known one",
		"if the host was set up anew, remove the old key with ssh-keygen -R %[1]s; if not, somebody may be listening"},
	{"Host key verification failed", verdictDenied, "the host key of %[1]s is not known",
		"connect once with ssh %[1]s and check its fingerprint"},
	{"Permission denied (", verdictDenied, "%[1]s refused the login",
		"it must work without questions, try ssh -oBatchMode=yes %[1]s true; as root, ssh_as=USER takes that user's keys; where a person must answer, migratefs reauth lets one"},
	{"Too many authentication failures", verdictDenied, "%[1]s refused the login",
		"name the right key with IdentityFile and IdentitiesOnly in ssh_config"},
	{"subsystem request failed", verdictRefused, "%[1]s offers no SFTP",
		"its sshd_config needs a line Subsystem sftp internal-sftp"},
	{noCommands, verdictRefused, "%[1]s runs no commands for this login", "leave sftp_server= out: the subsystem may do"},
	{"Could not resolve hostname", verdictLost, "the name %[1]s is not known", "check its spelling, or the resolver"},
	{"Connection refused", verdictLost, "nothing listens on %[1]s", "is sshd running there, is the port right?"},
	{"timed out", verdictLost, "%[1]s cannot be reached", "is it up, does a firewall drop the connection?"},
	{"No route to host", verdictLost, "%[1]s cannot be reached", "is it up, is the network?"},
	{"Network is unreachable", verdictLost, "%[1]s cannot be reached", "is the network up?"},
	{"not responding", verdictLost, "%[1]s does not respond any more", ""},
	{"onfiguration option", verdictRefused, "ssh does not understand its configuration", "correct the option it names"},
	{"Bad owner or permissions", verdictRefused, "ssh does not trust its configuration", "correct the owner or mode of the file it names"},
	{"Can't open user config file", verdictRefused, "ssh cannot read its configuration", "check the name of the file"},
	{"kex_exchange_identification", verdictRefused, "%[1]s ended the connection before the login",
		"its log says why: too many connections (MaxStartups), or this host is barred"},
	{"Connection reset", verdictRefused, "%[1]s ended the connection", ""},
	{"Connection closed", verdictRefused, "%[1]s ended the connection", ""},
	{"Broken pipe", verdictLost, "the connection to %[1]s broke", ""},
}

// known makes an error of what ssh printed, if sayings has it.
func known(host, text string) *connectError {
	for _, s := range sayings {
		if line := lineWith(text, s.text); line != "" {
			fill := func(format string) string { return strings.ReplaceAll(format, "%[1]s", host) }
			return &connectError{verdict: s.verdict, what: fill(s.what), remedy: fill(s.remedy), said: line}
		}
	}
	return nil
}

// explain makes an error of what ssh printed and how it ended. It is nil if ssh
// ended well.
func explain(host, text string, state *os.ProcessState) error {
	if e := known(host, text); e != nil {
		return e
	}
	last := lineWith(text, "")
	switch code := state.ExitCode(); {
	case code == 0:
		return nil
	case code > 0 && code != 255: // the subsystem's own status
		return &connectError{verdict: verdictRefused, ended: code,
			what:   fmt.Sprintf("the SFTP server on %s ended with status %d", host, code),
			remedy: "does the program that its sshd_config names for Subsystem sftp exist?", said: last}
	case code < 0:
		return &connectError{what: fmt.Sprintf("ssh to %s ended: %v", host, state), said: last}
	}
	return &connectError{what: "ssh to " + host + " failed", said: last}
}

// lineWith returns the last line of text that holds part, bounded; "" if none.
func lineWith(text, part string) string {
	found := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && strings.Contains(line, part) {
			found = line
		}
	}
	return found[:min(len(found), 200)]
}
