package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// once makes a lie that is told for the first request of type typ on the first
// session.
func once(typ byte, say func(q *query) []byte) func(*query) ([]byte, bool) {
	var told atomic.Bool
	return func(q *query) ([]byte, bool) {
		if q.typ != typ || told.Swap(true) {
			return nil, false
		}
		return say(q), true
	}
}

// A server that breaks the protocol gets ErrCorrupt and loses its channel; on the
// next one everything works.
func TestBreachOfProtocol(t *testing.T) {
	regular := &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000}
	name := func(n uint32, entries ...[]byte) func(q *query) []byte {
		return func(q *query) []byte { return packet(fxpName, q.id, cat(u32(n), cat(entries...))) }
	}
	reply := func(typ byte, body []byte) func(q *query) []byte {
		return func(q *query) []byte { return packet(typ, q.id, body) }
	}
	for what, c := range map[string]struct {
		typ byte
		say func(q *query) []byte
	}{
		"wrong id":                {fxpLstat, func(q *query) []byte { return packet(fxpAttrs, q.id+1000, regular.attrs()) }},
		"huge length":             {fxpLstat, func(q *query) []byte { return u32(0xffffffff) }},
		"length over the limit":   {fxpRead, func(q *query) []byte { return u32(maxPacket + 1) }},
		"far more than asked for": {fxpLstat, func(q *query) []byte { return packet(fxpAttrs, q.id, make([]byte, smallAnswer)) }},
		"length below the header": {fxpLstat, func(q *query) []byte { return u32(4, 0) }},
		"answered twice":          {fxpLstat, func(q *query) []byte { return bytes.Repeat(packet(fxpAttrs, q.id, regular.attrs()), 2) }},
		"type out of place":       {fxpLstat, reply(fxpHandle, str(nil, "h"))},
		"unknown type":            {fxpLstat, reply(77, nil)},
		"OK without attributes":   {fxpLstat, func(q *query) []byte { return status(q.id, fxOK) }},
		"empty status":            {fxpLstat, reply(fxpStatus, nil)},
		"no attributes":           {fxpLstat, reply(fxpAttrs, nil)},
		"truncated attributes":    {fxpLstat, reply(fxpAttrs, regular.attrs()[:20])},
		"attributes without mode": {fxpLstat, reply(fxpAttrs, cat(u32(attrSize), u64(3)))},
		"mode without a type":     {fxpLstat, reply(fxpAttrs, u32(attrMode, 0o644))},
		"negative size":           {fxpLstat, reply(fxpAttrs, cat(u32(attrSize|attrMode), u64(1<<63+5), u32(unix.S_IFREG)))},
		"endless extensions":      {fxpLstat, reply(fxpAttrs, u32(attrMode|attrExtended, unix.S_IFREG, 0xffffffff))},
		"empty handle":            {fxpOpen, reply(fxpHandle, str(nil, ""))},
		"long handle":             {fxpOpen, reply(fxpHandle, str(nil, strings.Repeat("h", maxHandle+1)))},
		"cut handle":              {fxpOpen, reply(fxpHandle, u32(4))},
		"no data":                 {fxpRead, reply(fxpData, str(nil, ""))},
		"more data than asked":    {fxpRead, reply(fxpData, str(nil, string(make([]byte, 100_001))))},
		"less data than claimed":  {fxpRead, reply(fxpData, u32(1000, 0))},
		"OK without data":         {fxpRead, func(q *query) []byte { return status(q.id, fxOK) }},
		"two real paths":          {fxpRealpath, name(2, str(str(nil, "/src"), "/src"), u32(0), str(str(nil, "/"), "/"), u32(0))},
		"no real path":            {fxpRealpath, name(0)},
		"empty real path":         {fxpRealpath, name(1, str(str(nil, ""), ""), u32(0))},
		"more names than bytes":   {fxpReaddir, name(0x7fffffff)},
		"cut name":                {fxpReaddir, name(1, u32(100), make([]byte, 20))},
		"cut names":               {fxpReaddir, name(2, listed("a", "", regular))},
		"cut statvfs":             {fxpExtended, reply(fxpExtendedReply, u64(1, 2, 3))},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake()
			l := f.open(t)
			f.set(func() { f.lie = once(c.typ, c.say) })
			work := func() error {
				b, err := content(soon(t), l, "f", 100_000)
				if err != nil {
					return err
				}
				if !bytes.Equal(b, f.files["/src/f"].data[:100_000]) {
					t.Fatal("wrong content")
				}
				list, err := l.ReadDir(soon(t), "")
				if err == nil && len(list) != 2 {
					t.Fatalf("%d names", len(list))
				}
				return err
			}
			if err := work(); !errors.Is(err, layers.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			if err := work(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if n := l.Stats().Connects; n != 2 {
				t.Errorf("%d connections, want a new one", n)
			}
		})
	}
}

// What a server says before SFTP begins.
func TestBadGreeting(t *testing.T) {
	for say, want := range map[string]string{
		"Welcome to our machine\r\nhave fun":   `"Welcome to our machine\r\nhave fun" instead of SFTP; if the login shell`,
		"Hi":                                   `"Hi" instead of SFTP`,
		"":                                     "EOF",
		"\x00\x00\x00\x05\x02\x00\x00\x00\x02": "SFTP version 2",
		"\x00\x00\x00\x05\x02\x00\x00\x00\x06": "SFTP version 6",
		"\x00\x00\x00\x09\x02\x00\x00\x00\x03\x00\x00\x00\xff": "malformed VERSION",
		"\xff\xff\xff\xff\x02":                                 "instead of SFTP",
	} {
		f := newFake()
		cfg := f.config()
		cfg.dial = func(ctx context.Context) (transport, error) {
			return &pipeTransport{strings.NewReader(say), io.Discard, func() {}}, nil
		}
		_, err := New(soon(t), cfg)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want one line with %q", say, err, want)
		}
	}
}

// Reads that bring less than was asked for are continued, not taken for the end.
func TestShortReads(t *testing.T) {
	f := newFake()
	l := f.open(t)
	f.set(func() {
		f.lie = func(q *query) ([]byte, bool) {
			if q.typ != fxpRead {
				return nil, false
			}
			off, n := q.rest.U64(), q.rest.U32()
			n = 1 + (n-1)*3/4
			return packet(fxpData, q.id, str(nil, string(f.files["/src/f"].data[off:off+uint64(n)]))), true
		}
	})
	want := f.files["/src/f"].data
	got, err := content(soon(t), l, "f", len(want)+1)
	if err != io.EOF || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// An end of file before the version's size is another version, not the end.
func TestEarlyEnd(t *testing.T) {
	f := newFake()
	f.files["/src/f"].size = int64(len(f.files["/src/f"].data)) + 1
	l := f.open(t)
	if b, err := content(soon(t), l, "f", 600_000); !errors.Is(err, layers.ErrStale) || len(b) != 0 {
		t.Errorf("%d bytes, %v, want ErrStale", len(b), err)
	}
}

// Nothing is handed out of a handle whose FSTAT shows something else than what
// was opened: another file, or another version, before or between reads.
func TestAnotherVersion(t *testing.T) {
	for what, change := range map[string]func(n *fakeFile){
		"mtime": func(n *fakeFile) { n.mtime++ },
		"size":  func(n *fakeFile) { n.data = append(bytes.Clone(n.data), 'x') },
		"mode":  func(n *fakeFile) { n.mode ^= 0o100 },
		"type":  func(n *fakeFile) { n.mode = unix.S_IFDIR | 0o644 },
	} {
		f := newFake()
		l := f.open(t)
		file, err := l.Open(soon(t), "f", nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1000)
		if n, err := file.ReadAt(soon(t), b, 5); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
		f.set(func() {
			for _, n := range f.handles {
				change(n.fakeFile)
			}
		})
		if n, err := file.ReadAt(soon(t), b, 5); !errors.Is(err, layers.ErrStale) || n != 0 {
			t.Errorf("%s: %d, %v, want ErrStale", what, n, err)
		}
	}
	t.Run("handle of another file", func(t *testing.T) {
		f := newFake()
		f.files["/src/g"].data = append(f.files["/src/g"].data, 'x')
		l := f.open(t)
		f.set(func() {
			f.lie = once(fxpOpen, func(q *query) []byte {
				q.name = "/src/g"
				return f.honest(q)
			})
		})
		if b, err := content(soon(t), l, "f", 10); !errors.Is(err, layers.ErrStale) || len(b) != 0 {
			t.Errorf("%d bytes, %v, want ErrStale", len(b), err)
		}
	})
}

// Names that a path cannot hold are left out, the others are not.
func TestBadNames(t *testing.T) {
	f := newFake()
	l := f.open(t)
	n := &fakeFile{mode: unix.S_IFREG | 0o644}
	f.set(func() {
		f.lie = once(fxpReaddir, func(q *query) []byte {
			var b []byte
			names := []string{"a", ".", "..", "", "x/y", "/etc/passwd", "../x", "nul\x00", strings.Repeat("n", 256), "b\n", "a", "z"}
			for _, s := range names {
				b = cat(b, listed(s, "-rw-r--r--    3 root", n))
			}
			return packet(fxpName, q.id, cat(u32(uint32(len(names))), b))
		})
	})
	list, err := l.ReadDir(soon(t), "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		if e.Name != "f" && e.Name != "g" { // the honest answers that follow
			got = append(got, e.Name)
			if e.Attr.Nlink != 3 || !e.Attr.Has(layers.KnownNlink) {
				t.Errorf("%q: %+v", e.Name, e.Attr)
			}
		}
	}
	sort.Strings(got)
	if strings.Join(got, ",") != "a,b\n,z" {
		t.Errorf("%q", got)
	}
}

// An answer that comes after its caller has gone: its handle is closed.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t)
		asked, answer := make(chan struct{}), make(chan struct{})
		f.set(func() {
			f.lie = once(fxpOpen, func(q *query) []byte {
				close(asked)
				<-answer
				return f.honest(q)
			})
		})
		ctx, cancel := context.WithCancel(soon(t))
		a, err := l.Stat(ctx, "f")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-asked
			cancel()
		}()
		if _, err := l.Open(ctx, "f", &a); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want Canceled", err)
		}
		close(answer)
		if _, err := l.Stat(soon(t), "f"); err != nil {
			t.Error(err)
		}
		synctest.Wait() // the CLOSE comes when it does
		f.set(func() {
			if len(f.handles) != 0 {
				t.Errorf("%d handles are left open", len(f.handles))
			}
		})
		if n := l.Stats().Connects; n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// An OPEN that does not return costs its channel, not the layer. If the name is
// no regular file any more by then, it is not opened again.
func TestOpenHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Timeout = 2 * time.Second })
		a, err := l.Stat(soon(t), "f")
		if err != nil {
			t.Fatal(err)
		}
		hang := make(chan struct{})
		defer close(hang)
		var opens atomic.Int32
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ != fxpOpen || q.name != "/src/f" {
					return nil, false
				}
				opens.Add(1)
				f.set(func() { f.files["/src/f"].mode = unix.S_IFIFO | 0o644 })
				return nil, true // nothing, and nothing of the burst behind it either
			}
		})
		silent := f.lie
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				b, ok := silent(q)
				if opens.Load() > 0 && q.session == 1 {
					return nil, true
				}
				return b, ok
			}
		})
		if _, err := l.Open(soon(t), "f", &a); !errors.Is(err, layers.ErrStale) {
			t.Errorf("%v, want ErrStale", err)
		}
		if n := opens.Load(); n != 1 {
			t.Errorf("opened %d times", n)
		}
		if b, err := content(soon(t), l, "g", 10); err != nil || !bytes.Equal(b, f.files["/src/g"].data[:10]) {
			t.Errorf("another file afterwards: %v", err)
		}
	})
}

// One answer that never comes while others do: the request is made again.
func TestAnswerLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Timeout = 4 * time.Second })
		f.set(func() { f.lie = once(fxpLstat, func(*query) []byte { return nil }) })
		done := make(chan error)
		go func() {
			_, err := l.Stat(soon(t), "f")
			done <- err
		}()
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
				if n := l.Stats().Connects; n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
				return
			default:
				if _, err := l.Stat(soon(t), "g"); err != nil {
					t.Error(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
}

// A server with many files open: no more handles than it can hold.
func TestHandleLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.limit = 80
		l := f.open(t)
		var open []layers.File
		for range 200 {
			file, err := l.Open(soon(t), "f", nil)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, file)
		}
		want := f.files["/src/f"].data[100:200]
		for _, file := range open {
			b := make([]byte, 100)
			if _, err := file.ReadAt(soon(t), b, 100); err != nil || !bytes.Equal(b, want) {
				t.Fatal(err)
			}
		}
		for _, file := range open {
			if err := file.Close(); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		f.set(func() {
			if f.most > 80 || len(f.handles) != 0 {
				t.Errorf("%d handles at most, %d at the end", f.most, len(f.handles))
			}
		})
	})
}
