package remote

import (
	"fmt"
	"sync/atomic"
	"time"
)

// tracing tells each request and what came of it, while somebody wants to know. It is
// nil in tests that have a conn and no layer.
type tracing struct {
	source   string // immutable; the target
	channels atomic.Int64
	f        atomic.Pointer[func(kind string, about ...any)]
}

// Trace has each request to the source told to f when it is answered, or when it is
// sure that it will not be, as the kind of it and what it was about, in the form of
// slog: names and numbers, no content. f must not use the layer. nil: none.
func (l *Layer) Trace(f func(kind string, about ...any)) {
	if f == nil {
		l.trace.f.Store(nil)
		return
	}
	l.trace.f.Store(&f)
}

func (t *tracing) on() bool { return t != nil && t.f.Load() != nil }

// channel is the number of a new channel of the layer.
func (t *tracing) channel() int64 { return t.channels.Add(1) }

// traced is what is to be told of a request.
type traced struct {
	kind  string
	about []any
}

func (t *tracing) tell(all ...traced) {
	f := t.f.Load()
	if f == nil {
		return
	}
	for _, x := range all {
		(*f)(x.kind, x.about...)
	}
}

var requestNames = map[byte]string{
	fxpOpen: "open", fxpClose: "close", fxpRead: "read", fxpLstat: "lstat", fxpFstat: "fstat", fxpOpendir: "opendir",
	fxpReaddir: "readdir", fxpRealpath: "realpath", fxpStat: "stat", fxpReadlink: "readlink", fxpExtended: "extended",
}

// tellAnswer is what is told of the request of s, with the answer r. Nobody has r yet.
func (c *conn) tellAnswer(s *slot, id uint32, r *reply) traced {
	t := c.asked(s, id)
	t.about = append(t.about, c.came(s.asked.typ, r)...)
	t.about = append(t.about, "took", c.since(s))
	return t
}

// tellLoss is what is told of the request of s when its channel ends.
func (c *conn) tellLoss(s *slot, id uint32, why error) traced {
	t := c.asked(s, id)
	t.about = append(t.about, "result", "no answer", "cause", why, "took", c.since(s))
	return t
}

func (c *conn) since(s *slot) time.Duration {
	return (time.Since(c.born) - s.sent).Round(time.Microsecond)
}

// asked is what is told of a request whatever came of it.
func (c *conn) asked(s *slot, id uint32) traced {
	q := s.asked
	d := decode(q.body)
	t := traced{kind: "sftp " + requestNames[q.typ], about: []any{"source", c.trace.source, "channel", c.number, "id", id}}
	switch name := d.Str(); q.typ {
	case fxpRead:
		t.about = append(t.about, "handle", handleText(name), "at", d.U64(), "bytes", d.U32())
	case fxpClose, fxpFstat, fxpReaddir:
		t.about = append(t.about, "handle", handleText(name))
	case fxpExtended:
		t.kind = "sftp " + name // of ours or OpenSSH's
		if name == extStatvfs {
			t.about = append(t.about, "path", d.Str())
		}
	default:
		t.about = append(t.about, "path", name)
	}
	return t
}

func handleText(h string) string { return fmt.Sprintf("%x", h) }

// came is what is told of an answer to a request of type typ.
func (c *conn) came(typ byte, r *reply) []any {
	d := decode(r.body)
	switch r.typ {
	case fxpStatus:
		return []any{"result", statusText(r.status())}
	case fxpHandle:
		return []any{"result", "ok", "handle", handleText(d.Str())}
	case fxpData:
		return []any{"result", "ok", "got", d.U32()}
	case fxpAttrs:
		if a, ok := d.attrs(); ok {
			return []any{"result", "ok", "size", a.Size, "mode", fmt.Sprintf("%o", a.Mode), "mtime", a.Mtime.Sec}
		}
	case fxpName:
		n := d.U32()
		if typ == fxpReaddir {
			return []any{"result", "ok", "names", n}
		}
		return []any{"result", "ok", "name", d.Str()}
	case fxpExtendedReply:
		return []any{"result", "ok", "got", len(r.body)}
	}
	return []any{"result", fmt.Sprintf("a packet of type %d", r.typ)}
}

func statusText(err error) string {
	switch {
	case err == nil:
		return "ok"
	case isStatus(err, fxEOF):
		return "end of file"
	}
	return err.Error()
}
