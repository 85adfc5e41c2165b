package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/overlay"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMount is a read-only mount that nobody sees.
func newMount(t *testing.T, device string) *Mount {
	t.Helper()
	l, err := local.Open(t.TempDir(), local.Config{})
	must(t, err)
	fs, err := overlay.New(t.Context(), overlay.Config{Lowers: []overlay.Lower{{Layer: l}}})
	must(t, err)
	t.Cleanup(func() { must(t, fs.Close()) })
	return &Mount{
		FS: fs, Version: "1.2", Point: "/mnt/a\nb", Device: device, Mode: "read-only",
		Layers: []LayerSpec{{Name: "/old \xff", Layer: l}},
		Log:    NewLog(NewText(io.Discard), slog.LevelInfo),
	}
}

// socketDir is a directory for sockets whose path is longer than that of a socket may be.
func socketDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("a long way/", 15), "control")
	must(t, os.MkdirAll(dir, 0o700))
	return dir
}

func serve(t *testing.T, dir string, m *Mount) *Server {
	t.Helper()
	s, err := Serve(dir, m)
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestServe(t *testing.T) {
	dir := socketDir(t)
	s := serve(t, dir, newMount(t, "0:42"))
	c := &Client{Dir: dir, Device: "0:42", UID: os.Geteuid()}
	defer c.Close()
	st, err := c.Status(t.Context())
	must(t, err)
	if st.Mountpoint != `/mnt/a\nb` || st.PID != os.Getpid() || st.Mode != "read-only" || len(st.Layers) != 1 ||
		st.Layers[0].Name != `/old \xff` || !st.Layers[0].Reachable || st.Layers[0].Size == 0 || st.Activity.Memory == 0 {
		t.Errorf("%+v", st)
	}
	var now Settings
	level := "debug"
	must(t, c.Change(t.Context(), "/v1/settings", &Settings{LogLevel: &level}, &now))
	if *now.LogLevel != "debug" || s.m.Log.Level() != slog.LevelDebug {
		t.Errorf("log_level is %q", *now.LogLevel)
	}
	level = "loud"
	rate := int64(5)
	for what, change := range map[string]any{
		"loud": &Settings{LogLevel: &level}, "another host": &Settings{FillRate: &rate}, "unknown field": map[string]int{"nonsense": 1},
	} {
		if err := c.Change(t.Context(), "/v1/settings", change, &now); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v: %v", change, err)
		}
	}
	if err := c.Get(t.Context(), "/v1/nothing", &now); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), `no GET "/v1/nothing"`) {
		t.Errorf("what is not there: %v", err)
	}
	for _, path := range []string{"/v1/conflicts", "/v1/missing", "/v1/latencies", "/v1/top", "/v1/history", "/v1/slow", "/v1/log", "/v1/settings"} {
		var v map[string]any
		if err := c.Get(t.Context(), path, &v); err != nil || len(v) == 0 {
			t.Errorf("%s: %v, %v", path, v, err)
		}
	}
	s.Close()
	if err := c.Get(t.Context(), "/v1/status", &now); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("after the end: %v", err)
	}
	if left := Devices(dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// held is a log that stands still.
type held struct {
	slog.Handler
	reached, release chan struct{}
	left             atomic.Bool
}

func (h *held) Handle(context.Context, slog.Record) error {
	close(h.reached)
	<-h.release
	h.left.Store(true)
	return nil
}

// TestCloseWaits: what is being changed has been changed when the end returns, so that
// what is ended next is not changed under way.
func TestCloseWaits(t *testing.T) {
	dir := socketDir(t)
	m := newMount(t, "0:42")
	h := &held{Handler: NewText(io.Discard), reached: make(chan struct{}), release: make(chan struct{})}
	m.Log = NewLog(h, slog.LevelInfo)
	s := serve(t, dir, m)
	go func() {
		c := &Client{Dir: dir, Device: "0:42", UID: os.Geteuid()}
		defer c.Close()
		trace := false
		// It fails, since nobody has an answer: the connection is closed.
		_ = c.Change(context.Background(), "/v1/settings", &Settings{Trace: &trace}, &Settings{})
		time.Sleep(100 * time.Millisecond) // for who does not wait to return
		close(h.release)
	}()
	<-h.reached
	s.Close()
	if !h.left.Load() {
		t.Error("a change is still under way")
	}
}

// TestStale: what a daemon leaves that died says nothing to anybody, and goes; what
// another mount has stays.
func TestStale(t *testing.T) {
	dir := socketDir(t)
	serve(t, dir, newMount(t, "0:41"))
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	for _, name := range []string{"0-42.sock", "0-43.sock", ".0-44.sock.new"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), Net: "unix"})
		must(t, err)
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	must(t, os.WriteFile(filepath.Join(dir, "something else"), nil, 0o600))
	if _, err := (&Client{Dir: dir, Device: "0:42", UID: os.Geteuid()}).Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("of a dead daemon: %v", err)
	}
	old := serve(t, dir, newMount(t, "0:42"))
	entries := names(dir)
	if want := []string{".lock", "0-41.sock", "0-42.sock", "something else"}; fmt.Sprint(entries) != fmt.Sprint(want) {
		t.Errorf("there are %q, want %q", entries, want)
	}
	// The device number is given away again while the old daemon still ends.
	serve(t, dir, newMount(t, "0:42"))
	old.Close()
	if _, err := (&Client{Dir: dir, Device: "0:42", UID: os.Geteuid()}).Status(t.Context()); err != nil {
		t.Errorf("the new mount of the same number: %v", err)
	}
	must(t, os.Rename(filepath.Join(dir, "0-42.sock"), filepath.Join(dir, "0-50.sock")))
	if _, err := (&Client{Dir: dir, Device: "0:50", UID: os.Geteuid()}).Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a socket of another mount: %v", err)
	}
	if _, err := (&Client{Dir: dir, Device: "0:41", UID: 4711}).Status(t.Context()); !errors.Is(err, ErrForbidden) {
		t.Errorf("a socket of another user: %v", err)
	}
	must(t, os.Chmod(dir, 0o755))
	if _, err := Serve(dir, newMount(t, "0:60")); err == nil || !strings.Contains(err.Error(), "not closed to others") {
		t.Errorf("in a directory that is open: %v", err)
	}
}

// TestStranger: nobody else is answered, even if the directory lets them in.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can be somebody else")
		return
	}
	dir := socketDir(t)
	serve(t, dir, newMount(t, "0:42"))
	fd, err := unix.Open(dir, unix.O_PATH, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Join(dir, "0-42.sock"), 0o666))
	answer := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		const nobody = 65534
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			answer <- e.Error()
			return
		}
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(s, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/0-42.sock", fd)})
		}
		if err == nil {
			_, err = unix.Write(s, []byte("GET /v1/status HTTP/1.0\r\n\r\n"))
		}
		if err != nil {
			answer <- err.Error()
			return
		}
		b, _ := io.ReadAll(os.NewFile(uintptr(s), "socket"))
		answer <- string(b)
	}()
	if got := <-answer; !strings.Contains(got, "403") || strings.Contains(got, "layers") {
		t.Errorf("a stranger gets %q", got)
	}
}

// TestMetrics: each line is of the format, each metric has a type, none tells a name.
func TestMetrics(t *testing.T) {
	m := newMount(t, "0:42")
	b, err := m.Metrics(t.Context())
	must(t, err)
	typed := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if typed[strings.Fields(name)[0]] {
				t.Errorf("twice: %s", line)
			}
			typed[strings.Fields(name)[0]] = true
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		name, _, _ := strings.Cut(strings.Fields(line)[0], "{")
		base := name
		for _, s := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, s)
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &v); err != nil || !typed[name] && !typed[base] {
			t.Errorf("%q: %v", line, err)
		}
	}
	for _, want := range []string{
		`migratefs_info{version="1.2",mode="read-only",device="0:42",state=""} 1`,
		`migratefs_layer_up{layer="0",role="lower",kind="local"} 1`,
		`migratefs_copy_up_seconds_bucket{le="+Inf"} 0`, "migratefs_open_handles 0", `migratefs_failures_total{reason="offline"} 0`,
	} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
	if bytes.Contains(b, []byte("/old")) || bytes.Contains(b, []byte("/mnt")) {
		t.Error("a name is in it")
	}
}

func TestExposition(t *testing.T) {
	e := &exposition{}
	var h overlay.Histogram
	h.Buckets[0], h.Buckets[2], h.Buckets[overlay.HistogramBuckets-1], h.Sum = 1, 2, 4, 1500*time.Millisecond
	e.histogram("x", &h, "operation", "a\"b\\c\nd\xff")
	want := `migratefs_x_bucket{operation="a\"b\\c\nd` + "\uFFFD" + `",le="1.6384e-05"} 1`
	lines := strings.Split(e.String(), "\n")
	if lines[0] != want || len(lines) != overlay.HistogramBuckets+3 || !strings.HasSuffix(lines[overlay.HistogramBuckets-1], `le="+Inf"} 7`) ||
		!strings.HasSuffix(lines[2], " 3") || !strings.HasSuffix(lines[overlay.HistogramBuckets], "} 1.5") {
		t.Errorf("%s", e.String())
	}
}

func TestHistory(t *testing.T) {
	var h history
	for i := range 5 * historyMost {
		h.add(&Sample{Requests: uint64(i)})
	}
	got := h.read()
	if n := len(got.Samples); n > historyMost || n < historyMost/2 || got.Samples[0].Requests != 0 || got.Every <= historyEvery.Seconds() {
		t.Errorf("%d samples, from %d on, every %v s", n, got.Samples[0].Requests, got.Every)
	}
	for i, s := range got.Samples[1:] {
		if s.Requests <= got.Samples[i].Requests {
			t.Fatalf("sample %d is older than the one before", i+1)
		}
	}
}

// TestHistoryBound: it is as large as it is said to be.
func TestHistoryBound(t *testing.T) {
	if n := unsafe.Sizeof(Sample{}) * historyMost; n != 86_400 {
		t.Errorf("the samples of a history are %d bytes: history.go and docs/control.md say otherwise", n)
	}
}

// TestDrained: what drains tell is added up, whatever they tell, and stays when they end.
func TestDrained(t *testing.T) {
	m := newMount(t, "0:42")
	if d := m.drained.read(); d != nil {
		t.Errorf("before anybody has told anything: %+v", d)
	}
	said := []*Drain{
		nil, {Phase: "counting", Files: 100, Bytes: 9000}, {Phase: "moving"}, {Phase: "moving", Files: 2, Bytes: 300}, {Phase: "moving", Files: 3, Bytes: 305},
		{Phase: "moving", Files: 1, Bytes: 1}, {Phase: "moving", Files: 1, Bytes: math.MaxInt64}, {Phase: "moving", Files: -5},
	}
	for i, now := range said[1:] {
		m.drained.add(said[i], now)
	}
	st, err := m.Status(t.Context())
	must(t, err)
	if d := st.Drained; d == nil || d.Files != 3 || d.Bytes != 305 || d.When.IsZero() {
		t.Errorf("told 3 files, 305 bytes: %+v", d)
	}
	if s, err := m.sample(t.Context()); err != nil || s.Drained != 305 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	l := NewLog(NewText(&out), slog.LevelInfo)
	now := time.Unix(1e9, 0)
	l.now = func() time.Time { return now }
	log := l.Logger()
	for i := range 3 * logBurst {
		log.Error("request failed", "path", fmt.Sprintf("a\n%d", i))
	}
	log.Debug("nobody wants to know")
	log.Info("something else")
	now = now.Add(2 * logEvery)
	log.Error("request failed", "path", "last")
	log.Error("request failed", "path", "really")
	text := out.String()
	if n := strings.Count(text, "request failed"); n != logBurst+2 || l.Dropped() != 2*logBurst {
		t.Errorf("%d of them, %d dropped", n, l.Dropped())
	}
	for _, want := range []string{"something else", fmt.Sprintf("path=last left_out_before=%d", 2*logBurst), "path=really\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	lines := l.Lines()
	if len(lines) != logBurst+3 || strings.Contains(text, "nobody") || !strings.Contains(lines[0], `request failed path="a\n0"`) {
		t.Errorf("remembered: %q", lines)
	}
	l.SetLevel(slog.LevelDebug)
	log.With("k", "v").Debug("now they do")
	l.Trace("lookup", "path", "/x y")
	if text := out.String(); !strings.Contains(text, `msg="now they do" k=v`) || !strings.Contains(text, `msg=lookup path="/x y"`) {
		t.Errorf("%s", text)
	}
}

// TestJournal speaks with a journal of its own.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	if newJournal(path) != nil {
		t.Error("a journal where there is none")
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer c.Close()
	j := newJournal(path)
	log := slog.New(j.WithAttrs([]slog.Attr{slog.String("mount", "/mnt")}))
	log.Warn("it failed", "cause", "two\nlines", "op", "read")
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	must(t, err)
	want := "MESSAGE=it failed mount=/mnt cause=\"two\\nlines\" op=read\nPRIORITY=4\nSYSLOG_IDENTIFIER=migratefs\nMIGRATEFS_MOUNT=/mnt\n" +
		"MIGRATEFS_CAUSE\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\nMIGRATEFS_OP=read\n"
	if got := string(b[:n]); got != want {
		t.Errorf("%q, want\n%q", got, want)
	}
	log.Error(strings.Repeat("x", 100<<10))
	if n, err = c.Read(b); err != nil || n > journalMost {
		t.Errorf("a long message has %d bytes: %v", n, err)
	}
}

// TestStuckLayer: a filesystem that does not answer holds nobody up.
func TestStuckLayer(t *testing.T) {
	m := newMount(t, "0:42")
	release := make(chan struct{})
	m.space.all = map[layers.Layer]*asking{m.Layers[0].Layer: {done: release, began: time.Now()}}
	defer close(release)
	st, err := m.Status(t.Context())
	must(t, err)
	if l := st.Layers[0]; l.Reachable || !l.Stuck {
		t.Errorf("%+v", l)
	}
	b, err := json.Marshal(st)
	must(t, err)
	if !bytes.Contains(b, []byte(`"not_answering":true`)) {
		t.Errorf("%s", b)
	}
}

// TestReportDrain: what a drain tells is told on for as long as it does, and only of a
// lower of this mount.
func TestReportDrain(t *testing.T) {
	dir := socketDir(t)
	m := newMount(t, "0:42")
	m.Layers[0].Root = FileID{1, 2}
	serve(t, dir, m)
	c := &Client{Dir: dir, Device: "0:42", UID: os.Geteuid()}
	defer c.Close()
	report := func(ctx context.Context, root FileID) error {
		files := int64(0)
		return c.ReportDrain(ctx, time.Millisecond, func() *DrainReport {
			files++
			return &DrainReport{Lowers: []FileID{{7, 7}, root}, Drain: Drain{Phase: "moving", Files: files, PID: 4711}}
		})
	}
	for _, root := range []FileID{{1, 3}, {}} {
		if err := report(t.Context(), root); !errors.Is(err, ErrNotOurs) {
			t.Errorf("of another lower: %v", err)
		}
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- report(ctx, FileID{1, 2}) }()
	drains := func() []Drain {
		st, err := c.Status(t.Context())
		must(t, err)
		return st.Drains
	}
	patient := func(what string, ok func(all []Drain) bool) {
		t.Helper()
		for began := time.Now(); !ok(drains()); time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s: %+v", what, drains())
			}
		}
	}
	patient("it goes on", func(all []Drain) bool { return len(all) == 1 && all[0].Files > 5 && all[0].PID == os.Getpid() })
	end()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	patient("it has ended", func(all []Drain) bool { return len(all) == 0 })
}
