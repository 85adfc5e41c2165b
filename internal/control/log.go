package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/migratefs/migratefs/copyup"
)

// Log is where a daemon's messages go: to a sink, of one kind no more than a few in a
// while, and the last of them are remembered for who asks later.
type Log struct {
	level slog.LevelVar
	sink  slog.Handler

	mu      sync.Mutex
	kept    [logKept]LogRecord
	next    int
	kinds   map[string]*logKind
	dropped uint64
	now     func() time.Time // of tests
}

// logKept is how many messages are remembered.
const logKept = 500

// Of one message (its text without what it is about) there are logBurst at once, and
// then one in logEvery: what is left out is counted, and said with the next.
const (
	logBurst = 20
	logEvery = 10 * time.Second
	logKinds = 200
)

// logKind is what is known of one message.
type logKind struct {
	tokens  float64
	at      time.Time
	dropped int
}

// NewLog makes a Log that writes to sink. What sink lets through by its own level is
// not asked.
func NewLog(sink slog.Handler, level slog.Level) *Log {
	l := &Log{sink: sink, kinds: make(map[string]*logKind), now: time.Now}
	l.level.Set(level)
	return l
}

// Logger returns what messages are given to.
func (l *Log) Logger() *slog.Logger { return slog.New(limited{l, l.sink}) }

// Level is the least level that is logged.
func (l *Log) Level() slog.Level { return l.level.Level() }

// SetLevel changes that.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// Dropped is how many messages were left out.
func (l *Log) Dropped() uint64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// LogRecord is one message: its text, and what it is about.
type LogRecord struct {
	When    time.Time     `json:"when"`
	Level   string        `json:"level"`
	Message copyup.Quoted `json:"message"`
	About   []LogAbout    `json:"about,omitempty"`
}

// LogAbout is one thing that a message is about.
type LogAbout struct {
	Key   string        `json:"key"`
	Value copyup.Quoted `json:"value"`
}

// Records returns the last messages, the oldest first.
func (l *Log) Records() []LogRecord {
	all := []LogRecord{}
	if l == nil {
		return all
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range logKept {
		if r := l.kept[(l.next+i)%logKept]; !r.When.IsZero() {
			all = append(all, r)
		}
	}
	return all
}

// Lines returns the last messages, each on a line, the oldest first.
func (l *Log) Lines() []string {
	lines := []string{}
	for _, r := range l.Records() {
		lines = append(lines, r.line())
	}
	return lines
}

// Trace logs a line of a trace, whatever the level: all of them, and none is remembered.
func (l *Log) Trace(kind string, about ...any) {
	r := slog.NewRecord(time.Now(), slog.LevelDebug, kind, 0)
	r.Add(about...)
	_ = l.sink.Handle(context.Background(), r)
}

// admit reports whether a message may be said, and how many like it were not before.
func (l *Log) admit(message string, now time.Time) (ok bool, before int) {
	k := l.kinds[message]
	if k == nil {
		if len(l.kinds) >= logKinds {
			clear(l.kinds)
		}
		k = &logKind{tokens: logBurst, at: now}
		l.kinds[message] = k
	}
	k.tokens = min(logBurst, k.tokens+now.Sub(k.at).Seconds()/logEvery.Seconds())
	k.at = now
	if k.tokens < 1 {
		k.dropped++
		l.dropped++
		return false, 0
	}
	k.tokens--
	before, k.dropped = k.dropped, 0
	return true, before
}

func (l *Log) keep(r *slog.Record) {
	k := LogRecord{When: r.Time.UTC(), Level: r.Level.String(), Message: copyup.Quoted(r.Message)}
	r.Attrs(func(a slog.Attr) bool {
		k.About = append(k.About, LogAbout{a.Key, copyup.Quoted(a.Value.Resolve().String())})
		return true
	})
	l.kept[l.next] = k
	l.next = (l.next + 1) % logKept
}

// limited is the handler: what With and WithGroup add goes to the sink.
type limited struct {
	log  *Log
	sink slog.Handler
}

// Enabled implements slog.Handler.
func (h limited) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.log.level.Level()
}

// WithAttrs implements slog.Handler.
func (h limited) WithAttrs(as []slog.Attr) slog.Handler { return limited{h.log, h.sink.WithAttrs(as)} }

// WithGroup implements slog.Handler.
func (h limited) WithGroup(name string) slog.Handler { return limited{h.log, h.sink.WithGroup(name)} }

// Handle implements slog.Handler.
func (h limited) Handle(ctx context.Context, r slog.Record) error {
	l := h.log
	l.mu.Lock()
	before, ok := 0, true
	if r.Level > slog.LevelDebug { // who wants those wants all of them
		ok, before = l.admit(r.Message, l.now())
	}
	if ok {
		l.keep(&r)
	}
	l.mu.Unlock()
	if !ok {
		return nil
	}
	if before > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out_before", before))
	}
	return h.sink.Handle(ctx, r)
}

// line is a message on one line.
func (r *LogRecord) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", r.When.Format(time.RFC3339), r.Level, r.Message)
	for _, a := range r.About {
		fmt.Fprintf(&b, " %s=%s", a.Key, quoteIfNeeded(string(a.Value)))
	}
	return b.String()
}

func quoteIfNeeded(s string) string {
	if q := fmt.Sprintf("%q", s); len(q) != len(s)+2 || strings.ContainsAny(s, " =") || s == "" {
		return q
	}
	return s
}

// NewText is a sink that writes lines to w.
func NewText(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
}
