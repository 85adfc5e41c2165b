package remote

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// traceLines collects what a layer tells of its requests, as the daemon logs it.
type traceLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *traceLines) tell(kind string, about ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := slog.NewRecord(time.Time{}, slog.LevelDebug, kind, 0)
	r.Add(about...)
	_ = slog.NewTextHandler(&x.b, &slog.HandlerOptions{Level: slog.LevelDebug}).Handle(context.Background(), r)
}

func (x *traceLines) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// wait waits for a line: it comes when the answer has been handed over.
func (x *traceLines) wait(t *testing.T, want string) {
	t.Helper()
	for ctx := soon(t); !strings.Contains(x.String(), want); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("no %q in\n%s", want, x)
		}
	}
}

// Each request is told with what came of it, on a line; nothing of what files hold is.
func TestTrace(t *testing.T) {
	f := newFake()
	const secret = "what a file holds"
	f.files["/src/a b\n"] = &fakeFile{mode: unix.S_IFREG | 0o640, mtime: 1000, data: []byte(strings.Repeat(secret, 10_000))}
	l := f.open(t)
	var lines traceLines
	_, err := l.Stat(soon(t), "f")
	must(t, err)
	l.Trace(lines.tell)
	_, err = l.Stat(soon(t), "a b\n")
	must(t, err)
	if _, err = l.Stat(soon(t), "nothing"); err == nil {
		t.Error("it is there")
	}
	file, err := l.Open(soon(t), "a b\n", nil)
	must(t, err)
	b := make([]byte, 5000)
	_, err = file.ReadAt(soon(t), b, 100_000)
	must(t, err)
	must(t, file.Close())
	_, err = l.ReadDir(soon(t), layers.Root)
	must(t, err)
	for _, want := range []string{
		`msg="sftp lstat" source=`, ` channel=1 id=`, ` path="/src/a b\n" result=ok size=170000 mode=100640 mtime=1000 took=`,
		`path=/src/nothing result="no such file or directory`, `msg="sftp open" `, `path="/src/a b\n" result=ok handle=`,
		`msg="sftp read" `, ` at=100000 bytes=5000 result=ok got=5000 took=`, `msg="sftp readdir" `, `result=ok names=`, `result="end of file"`,
		`msg="sftp close" `,
	} {
		lines.wait(t, want)
	}
	text := lines.String()
	if strings.Contains(text, secret[:6]) || strings.Contains(text, "/src/f ") || strings.Count(text, "\n") != strings.Count(text, "msg=\"sftp ") {
		t.Errorf("content, what was before, or a line that is none, in\n%s", text)
	}
	// What is never answered is told when that is sure.
	f.set(func() { f.lie = func(q *query) ([]byte, bool) { return nil, q.typ == fxpLstat && q.name == "/src/g" } })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Stat(ctx, "g")
	}()
	lost := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c := l.cur; c != nil && c.silent() > 0 {
			go c.fail(errLost, nil)
		}
	}
	for ctx := soon(t); !strings.Contains(lines.String(), `path=/src/g result="no answer" cause=`); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("what is not answered is not told:\n%s", &lines)
		}
		lost()
	}
	cancel()
	<-done
	l.Trace(nil)
	_, _ = l.Stat(soon(t), "quiet")
	if strings.Contains(lines.String(), "/src/quiet") {
		t.Error("it goes on")
	}
}

// request1 sends one on a channel of which only the bookkeeping is there, and answers it.
func request1(c *conn, req *request, answer []byte) {
	c.mu.Lock()
	id := c.nextID
	c.put(req, &slot{})
	c.out = c.out[:0]
	c.mu.Unlock()
	if err := c.deliver(id, reply{typ: fxpStatus, body: answer}); err != nil {
		panic(err)
	}
}

// An untraced request costs no more than one of a channel that cannot be traced.
func TestTraceOffCostsNothing(t *testing.T) {
	cost := func(trace *tracing) float64 {
		c := newConn(nil, time.Minute, new(counters))
		c.trace = trace
		req, answer := askPath(fxpLstat, "/src/f"), status(0, fxOK)[9:]
		return testing.AllocsPerRun(1000, func() { request1(c, &req, answer) })
	}
	on := &tracing{}
	f := func(string, ...any) {}
	on.f.Store(&f)
	if never, off, traced := cost(nil), cost(&tracing{}), cost(on); off != never || traced <= off {
		t.Errorf("allocations of a request: %v, with tracing off %v, on %v", never, off, traced)
	}
}

func BenchmarkRequest(b *testing.B) {
	on := &tracing{}
	f := func(string, ...any) {}
	on.f.Store(&f)
	for _, trace := range []*tracing{nil, {}, on} {
		b.Run(fmt.Sprintf("traceable=%v,traced=%v", trace != nil, trace.on()), func(b *testing.B) {
			b.ReportAllocs()
			c := newConn(nil, time.Minute, new(counters))
			c.trace = trace
			req, answer := askPath(fxpLstat, "/src/f"), status(0, fxOK)[9:]
			for b.Loop() {
				request1(c, &req, answer)
			}
		})
	}
}
