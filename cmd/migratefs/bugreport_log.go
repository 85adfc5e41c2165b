package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/control"
)

// lastMessages is how many messages are reported at most.
const lastMessages = 500

// messages returns the last messages of a mount, the oldest first.
func (r *bugreport) messages(ctx context.Context, m *reported) ([]control.LogRecord, error) {
	switch {
	case m.status != nil:
		var told struct{ Records []control.LogRecord }
		if err := m.client.Get(ctx, "/v1/log", &told); err != nil {
			return nil, err
		}
		if told.Records == nil {
			return nil, errors.New("the daemon is of an older version")
		}
		for i := range told.Records {
			c := &told.Records[i]
			c.Message = copyup.Quoted(unquoted(string(c.Message)))
			for j := range c.About {
				c.About[j].Value = copyup.Quoted(unquoted(string(c.About[j].Value)))
			}
		}
		return told.Records, nil
	case m.options != nil && m.options.logFile != "":
		return fileMessages(m.options.logFile)
	}
	return journalMessages(ctx, m.point)
}

// unquoteText undoes what copyup.Quoted does.
func unquoteText(s string) (string, error) { return strconv.Unquote(`"` + s + `"`) }

// fileMessages reads the end of the file of log=.
func fileMessages(name string) (all []control.LogRecord, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("the file of log= is no regular file")
	}
	const most = 256 << 10
	from := max(0, fi.Size()-most)
	b, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return nil, err
	}
	text := string(b)
	if from > 0 {
		_, text, _ = strings.Cut(text, "\n") // the rest of a line
	}
	for line := range strings.Lines(text) {
		all = append(all, parseLine(strings.TrimSuffix(line, "\n")))
	}
	return newest(all, lastMessages), nil
}

// parseLine reads a line of slog's text format; what is none is a message as a whole.
func parseLine(line string) (r control.LogRecord) {
	for rest := line; rest != ""; {
		key, after, ok := strings.Cut(rest, "=")
		v, q := "", ""
		if q, _ = strconv.QuotedPrefix(after); q != "" {
			v, _ = strconv.Unquote(q)
			rest = after[len(q):]
		} else {
			v, rest, _ = strings.Cut(after, " ")
		}
		rest = strings.TrimPrefix(rest, " ")
		if !ok || strings.ContainsAny(key, " \"") {
			return control.LogRecord{Message: copyup.Quoted(line)}
		}
		switch key {
		case "time":
			r.When, _ = time.Parse(time.RFC3339Nano, v)
		case "level":
			r.Level = v
		case "msg":
			r.Message = copyup.Quoted(v)
		default:
			r.About = append(r.About, control.LogAbout{Key: key, Value: copyup.Quoted(v)})
		}
	}
	return r
}

// journalMessages asks systemd's journal for what our daemons said of a mount, and
// what they printed when they died.
func journalMessages(ctx context.Context, point string) (all []control.LogRecord, err error) {
	path, err := exec.LookPath("journalctl")
	if err != nil {
		return nil, errors.New("its daemon does not answer, and there is no journal (journalctl) here")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-q", "-o", "json", "-t", "migratefs", "-n", strconv.Itoa(4*lastMessages)).Output()
	if err != nil {
		return nil, fmt.Errorf("its daemon does not answer, and journalctl failed: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			continue
		}
		if of := journalText(fields["MIGRATEFS_MOUNT"]); of == "" || of == point {
			all = append(all, journalRecord(fields))
		}
	}
	return newest(all, lastMessages), nil
}

// journalRecord takes apart what Journal writes: the message with all it is about
// behind it, and a field for each of that.
func journalRecord(fields map[string]any) (r control.LogRecord) {
	us, _ := strconv.ParseInt(journalText(fields["__REALTIME_TIMESTAMP"]), 10, 64)
	r.When = time.UnixMicro(us)
	r.Level = map[string]string{"3": "ERROR", "4": "WARN", "6": "INFO", "7": "DEBUG"}[journalText(fields["PRIORITY"])]
	text := journalText(fields["MESSAGE"])
	for _, name := range sortedKeys(fields) {
		key, ours := strings.CutPrefix(name, "MIGRATEFS_")
		if !ours {
			continue
		}
		key = strings.ToLower(key)
		if i := strings.Index(text, " "+key+"="); i >= 0 {
			text = text[:i]
		}
		if key != "mount" {
			r.About = append(r.About, control.LogAbout{Key: key, Value: copyup.Quoted(journalText(fields[name]))})
		}
	}
	r.Message = copyup.Quoted(text)
	return r
}

// journalText is a field as journalctl prints it: text, or the numbers of bytes that
// are none.
func journalText(v any) string {
	switch x := v.(type) {
	case string:
		return x
	case []any:
		var b []byte
		for _, n := range x {
			if f, ok := n.(float64); ok {
				b = append(b, byte(f))
			}
		}
		return string(b)
	}
	return ""
}

var (
	// stackCall is a function in the stack that Go prints of a goroutine.
	stackCall = regexp.MustCompile(`^(created by )?(github\.com/(migratefs|hanwen)/|golang\.org/x/|(runtime|main|sync|syscall|os|net|net/http|internal/poll)\.)[\w./*()\[\]]*(\([0-9a-fx, .?{}]*\))?( in goroutine \d+)?$`)
	// stackLine is where it stands there.
	stackLine = regexp.MustCompile(`^\t\S*/([^/\s]+/[^/\s]+\.(?:go|s):\d+)( \+0x[0-9a-f]+)?$`)
)

// message is a message without what may be private in it.
func (t *tokens) message(s string) string {
	if m := stackLine.FindStringSubmatch(s); m != nil {
		return m[1] + m[2]
	}
	if stackCall.MatchString(s) {
		return s
	}
	return t.text(s)
}
