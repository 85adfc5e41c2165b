package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// journalSocket is where systemd's journal listens (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const journalSocket = "/run/systemd/journal/socket"

// journalMost is the longest message: datagrams of a Unix socket end somewhere above.
const journalMost = 48 << 10

// Journal is a sink that writes to systemd's journal by its own protocol: levels stay
// levels, and each attribute of a message is a field (MIGRATEFS_PATH=...).
type Journal struct {
	mu    sync.Mutex
	fd    int
	to    unix.Sockaddr
	attrs []slog.Attr
	group string
	base  *Journal // who has the socket; nil: it does
}

// NewJournal returns a Journal, or nil if there is none here.
func NewJournal() *Journal { return newJournal(journalSocket) }

func newJournal(path string) *Journal {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	j := &Journal{fd: fd, to: &unix.SockaddrUnix{Name: path}}
	if unix.Connect(fd, j.to) != nil {
		unix.Close(fd)
		return nil
	}
	return j
}

// UnderJournal reports whether standard error goes to the journal (JOURNAL_STREAM of
// systemd.exec(5)).
func UnderJournal() bool {
	var st unix.Stat_t
	if unix.Fstat(2, &st) != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// Enabled implements slog.Handler.
func (j *Journal) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (j *Journal) WithAttrs(as []slog.Attr) slog.Handler {
	k := j.derived()
	k.attrs = append(append([]slog.Attr{}, j.attrs...), as...)
	return k
}

// WithGroup implements slog.Handler.
func (j *Journal) WithGroup(name string) slog.Handler {
	k := j.derived()
	k.group = j.group + name + "_"
	return k
}

func (j *Journal) derived() *Journal {
	base := j
	if j.base != nil {
		base = j.base
	}
	return &Journal{attrs: j.attrs, group: j.group, base: base}
}

// Handle implements slog.Handler.
func (j *Journal) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	text := r.Message
	add := func(a slog.Attr) bool {
		v := a.Value.Resolve().String()
		journalField(&b, fieldName(j.group+a.Key), v)
		text += " " + a.Key + "=" + quoteIfNeeded(v)
		return true
	}
	for _, a := range j.attrs {
		add(a)
	}
	r.Attrs(add)
	if len(text) > journalMost/2 {
		text = text[:journalMost/2] + "..."
	}
	var m bytes.Buffer
	journalField(&m, "MESSAGE", text)
	journalField(&m, "PRIORITY", priority(r.Level))
	journalField(&m, "SYSLOG_IDENTIFIER", "migratefs")
	if m.Len()+b.Len() <= journalMost {
		m.Write(b.Bytes())
	}
	base := j
	if j.base != nil {
		base = j.base
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	err := unix.Sendto(base.fd, m.Bytes(), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
	if err != nil && unix.Connect(base.fd, base.to) == nil { // it was started anew
		err = unix.Sendto(base.fd, m.Bytes(), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
	}
	return err
}

// priority is a level as syslog(3) has it.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "3"
	case l >= slog.LevelWarn:
		return "4"
	case l >= slog.LevelInfo:
		return "6"
	}
	return "7"
}

// fieldName is a name that the journal takes: capitals, digits, underscores.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
	const most = 64 - len("MIGRATEFS_")
	return "MIGRATEFS_" + name[:min(len(name), most)]
}

// journalField adds a field. What has line ends is told by its length.
func journalField(b *bytes.Buffer, name, value string) {
	b.WriteString(name)
	if !strings.ContainsRune(value, '\n') {
		b.WriteByte('=')
		b.WriteString(value)
		b.WriteByte('\n')
		return
	}
	b.WriteByte('\n')
	_ = binary.Write(b, binary.LittleEndian, uint64(len(value)))
	b.WriteString(value)
	b.WriteByte('\n')
}
