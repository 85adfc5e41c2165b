package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// hangUp ends the current connection, if there is one, from the network's side.
func hangUp(l *Layer) {
	l.mu.Lock()
	c := l.cur
	l.mu.Unlock()
	if c == nil {
		return
	}
	c.fail(lost(io.EOF), nil)
}

// A connection that is lost under a read costs the read nothing but time, wherever
// it is lost.
func TestLostUnderRead(t *testing.T) {
	for _, typ := range []byte{fxpRead, fxpFstat, fxpOpen, fxpLstat, fxpRealpath, fxpExtended} {
		f := newFake()
		l := f.open(t)
		want := f.files["/src/f"].data
		var once atomic.Bool
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ == typ && q.session == 1 && !once.Swap(true) {
					go hangUp(l)
					return nil, true
				}
				return nil, false
			}
		})
		got, err := content(soon(t), l, "f", len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("lost at type %d: %d bytes, %v", typ, len(got), err)
		}
		if n := l.Stats().Connects; n != 2 {
			t.Errorf("lost at type %d: %d connections", typ, n)
		}
	}
}

// What was open is opened anew by its path, and must be what it was.
func TestReopen(t *testing.T) {
	for what, c := range map[string]struct {
		change func(f *fake)
		want   error
	}{
		"unchanged": {func(f *fake) {}, nil},
		"changed":   {func(f *fake) { f.files["/src/f"].mtime++ }, layers.ErrStale},
		"gone":      {func(f *fake) { delete(f.files, "/src/f") }, layers.ErrStale},
		"a FIFO":    {func(f *fake) { f.files["/src/f"].mode = unix.S_IFIFO | 0o644 }, layers.ErrStale},
		"replaced":  {func(f *fake) { f.fsid = 8 }, layers.ErrReplaced},
		"no root":   {func(f *fake) { clear(f.files); f.fsid = 8 }, layers.ErrReplaced},
	} {
		f := newFake()
		l := f.open(t)
		file, err := l.Open(soon(t), "f", nil)
		if err != nil {
			t.Fatal(err)
		}
		want := f.files["/src/f"].data
		f.set(func() { c.change(f) })
		hangUp(l)
		b := make([]byte, len(want))
		n, err := file.ReadAt(soon(t), b, 0)
		if !errors.Is(err, c.want) || c.want != nil && n != 0 || c.want == nil && !bytes.Equal(b[:n], want) {
			t.Errorf("%s: %d bytes, %v, want %v", what, n, err, c.want)
		}
	}
}

// A root on another filesystem is not an empty directory, whatever is asked, with
// and without a new connection. When the right one is back, so is the layer.
func TestReplaced(t *testing.T) {
	f := newFake()
	l := f.open(t)
	saved := f.files
	f.set(func() {
		f.fsid = 8
		f.files = map[string]*fakeFile{"/src": {mode: unix.S_IFDIR | 0o755}}
	})
	ask := func() {
		t.Helper()
		a := layers.Attr{Mode: unix.S_IFREG | 0o644}
		for what, err := range map[string]error{
			"Stat":     second(l.Stat(soon(t), "f")),
			"root":     second(l.Stat(soon(t), "")),
			"ReadDir":  second(l.ReadDir(soon(t), "")),
			"Open":     second(l.Open(soon(t), "f", nil)),
			"Open 2":   second(l.Open(soon(t), "f", &a)),
			"Readlink": second(l.Readlink(soon(t), "f")),
			"Statfs":   second(l.Statfs(soon(t))),
		} {
			if !errors.Is(err, layers.ErrReplaced) {
				t.Errorf("%s: %v, want ErrReplaced", what, err)
			}
		}
		if _, errs, err := l.StatMany(soon(t), []layers.Path{"f", "none"}); !errors.Is(err, layers.ErrReplaced) {
			t.Errorf("StatMany: %v, %v, want ErrReplaced", errs, err)
		}
	}
	ask()
	hangUp(l)
	ask()
	if err := l.Offline(); !errors.Is(err, layers.ErrReplaced) {
		t.Errorf("Offline: %v", err)
	}
	f.set(func() { f.fsid, f.files = 7, saved })
	if _, err := l.Stat(soon(t), "f"); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// Without statvfs@openssh.com a root that is gone is still told from a file that is.
func TestPlainServer(t *testing.T) {
	f := newFake()
	f.exts = nil
	l := f.open(t)
	want := f.files["/src/f"].data
	if got, err := content(soon(t), l, "f", len(want)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := l.Statfs(soon(t)); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("Statfs: %v", err)
	}
	if _, err := l.Stat(soon(t), "none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ENOENT", err)
	}
	f.set(func() { clear(f.files) })
	if _, err := l.Stat(soon(t), "none"); !errors.Is(err, layers.ErrReplaced) || errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ErrReplaced", err)
	}
}

// A refused login is not tried again until somebody says so; until then requests
// fail at once.
func TestParked(t *testing.T) {
	f := newFake()
	l := f.open(t)
	denied := &connectError{verdict: verdictDenied, what: "fake refused the login"}
	f.set(func() { f.refuse = denied })
	hangUp(l)
	for range 20 {
		if _, err := l.Stat(soon(t), "f"); !errors.Is(err, layers.ErrDenied) || errors.Is(err, unix.ENOENT) {
			t.Fatalf("%v, want ErrDenied", err)
		}
	}
	if err := l.Offline(); !errors.Is(err, layers.ErrDenied) {
		t.Errorf("Offline: %v", err)
	}
	f.set(func() { f.refuse = nil })
	if _, err := l.Stat(soon(t), "f"); !errors.Is(err, layers.ErrDenied) {
		t.Errorf("%v: it has logged in again by itself", err)
	}
	l.Reconnect()
	if _, err := l.Stat(soon(t), "f"); err != nil {
		t.Error(err)
	}
}

// What a person's login makes possible is tried at once, and once: in vain if it is
// none of ours.
func TestPersonsLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var master atomic.Value
		master.Store("")
		var dials atomic.Int32
		l := f.open(t, func(c *Config) {
			c.pace.look, c.pace.refusal = time.Millisecond, time.Hour
			c.master = func() string { return master.Load().(string) }
			dial := c.dial
			c.dial = func(ctx context.Context) (transport, error) {
				dials.Add(1)
				return dial(ctx)
			}
		})
		f.set(func() { f.refuse = &connectError{verdict: verdictDenied, what: "fake refused the login"} })
		hangUp(l)
		parked := func(want int32) {
			t.Helper()
			for dials.Load() != want || l.Offline() == nil {
				time.Sleep(time.Millisecond)
			}
			for range 10 {
				if _, err := l.Stat(soon(t), "f"); !errors.Is(err, layers.ErrDenied) {
					t.Fatalf("%v, want ErrDenied", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
			if n := dials.Load(); n != want {
				t.Errorf("%d logins, want %d", n, want)
			}
		}
		parked(2)
		master.Store("dead")
		parked(3)
		f.set(func() { f.refuse = nil })
		parked(3)
		master.Store("alive")
		for l.Offline() != nil {
			time.Sleep(time.Millisecond)
		}
		if _, err := l.Stat(soon(t), "f"); err != nil {
			t.Error(err)
		}
		// It also ends the pause after a server that turns us away.
		f.set(func() { f.refuse = &connectError{verdict: verdictRefused, what: "fake is full"} })
		hangUp(l)
		for dials.Load() != 5 {
			time.Sleep(time.Millisecond)
		}
		f.set(func() { f.refuse = nil })
		master.Store("another")
		if _, err := l.Stat(soon(t), "f"); err != nil || dials.Load() != 6 {
			t.Errorf("%v after %d logins", err, dials.Load())
		}
	})
}

// Soft: away for the timeout is ErrOffline, and once it is known to be away,
// nobody waits that long again. ErrOffline says why.
func TestSoft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		f.set(func() { f.refuse = &connectError{what: "nothing listens on fake"} })
		hangUp(l)
		for range 100 {
			_, err := l.Stat(soon(t), "f")
			if !errors.Is(err, layers.ErrOffline) || errors.Is(err, unix.ENOENT) {
				t.Fatalf("%v, want ErrOffline", err)
			}
		}
		f.set(func() { f.refuse = nil })
		for l.Offline() != nil {
			time.Sleep(time.Millisecond)
		}
		if _, err := l.Stat(soon(t), "f"); err != nil {
			t.Error(err)
		}
	})
}

// A server that takes requests and answers nothing: ErrOffline with the deadline
// as its cause when soft, and the context when hard.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hard := range []bool{false, true} {
			f := newFake()
			l := f.open(t, func(c *Config) { c.Timeout, c.Hard = 400*time.Millisecond, hard })
			f.set(func() {
				f.lie = func(q *query) ([]byte, bool) {
					return nil, q.typ == fxpLstat && q.name == "/src/f" || q.typ == fxpRealpath
				}
			})
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := l.Stat(ctx, "f")
			cancel()
			switch {
			case errors.Is(err, unix.ENOENT):
				t.Errorf("hard=%v: %v", hard, err)
			case hard && !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("hard: %v, want the context's error", err)
			case !hard && (!errors.Is(err, layers.ErrOffline) || !errors.Is(err, os.ErrDeadlineExceeded)):
				t.Errorf("soft: %v, want ErrOffline because of the deadline", err)
			}
		}
	})
}

// TestSlowToBegin: a server that needs longer than half the timeout for the first
// answers on a connection, whenever that is made, is no silent one.
func TestSlowToBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var begun atomic.Int32 // the last session that has
		f.lie = func(q *query) ([]byte, bool) {
			if q.name == "/src" && begun.Swap(int32(q.session)) != int32(q.session) {
				time.Sleep(3 * time.Second)
			}
			return nil, false
		}
		l := f.open(t, func(c *Config) { c.Timeout, c.Hard = 2*time.Second, true })
		f.set(func() {
			if f.sessions != 1 {
				t.Errorf("the first connection took %d logins", f.sessions)
			}
		})
		hangUp(l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.Stat(ctx, "f"); err != nil {
			t.Error(err)
		}
	})
}

// Hard: requests wait as long as the source is away, a refused login included,
// and go on when it is back; a cancelled one ends at once.
func TestHard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Timeout, c.Hard = 50*time.Millisecond, true })
		f.set(func() { f.refuse = &connectError{verdict: verdictDenied, what: "fake refused the login"} })
		hangUp(l)
		done := make(chan error, 10)
		for range 10 {
			go func() {
				_, err := l.Stat(soon(t), "f")
				done <- err
			}()
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(200*time.Millisecond, cancel)
		if _, err := l.Stat(ctx, "f"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want Canceled", err)
		}
		select {
		case err := <-done:
			t.Errorf("%v while the source was away", err)
		default:
		}
		f.set(func() { f.refuse = nil })
		l.Reconnect()
		for range 10 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// Every login is made after the one before it has ended.
func TestOneLoginAtATime(t *testing.T) {
	f := newFake()
	var now, most atomic.Int32
	l := f.open(t, func(c *Config) {
		dial := c.dial
		c.dial = func(ctx context.Context) (transport, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(5 * time.Millisecond)
			return dial(ctx)
		}
	})
	for i := range 10 {
		hangUp(l)
		done := make(chan error)
		for range 8 {
			go func() {
				_, err := l.Stat(soon(t), "f")
				done <- err
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d logins at once", most.Load())
	}
}

// Closing ends whatever waits.
func TestCloseEndsWaits(t *testing.T) {
	for _, away := range []bool{false, true} {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Hard = true })
		asked := make(chan struct{}, 10)
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ == fxpLstat {
					asked <- struct{}{}
				}
				return nil, true
			}
			if away {
				f.refuse = fmt.Errorf("nobody there")
			}
		})
		done := make(chan error)
		if away {
			hangUp(l)
		}
		go func() {
			_, err := l.Stat(soon(t), "f")
			done <- err
		}()
		if !away {
			<-asked
		}
		l.Close()
		if err := <-done; !errors.Is(err, unix.EBADF) {
			t.Errorf("away=%v: %v", away, err)
		}
	}
}

// A root that is a file now, or a symlink to where the tree went, on the same
// filesystem: what seems to be missing in it is not.
func TestRootIsAnother(t *testing.T) {
	file := &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000, data: []byte("x")}
	for what, real := range map[string]string{"a file": "/src", "a link": "/elsewhere"} {
		f := newSlots()
		l := f.open(t)
		a, err := l.Stat(soon(t), "d/099")
		must(t, err)
		f.set(func() {
			for name := range f.files {
				if real == "/src" {
					delete(f.files, name)
				}
			}
			if real == "/src" {
				f.files["/src"] = file
			}
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ != fxpRealpath || real == "/src" {
					return nil, false
				}
				to := real + strings.TrimPrefix(q.name, "/src")
				return packet(fxpName, q.id, cat(u32(1), str(str(nil, to), to), u32(0))), true
			}
		})
		for call, err := range map[string]error{
			"Stat":        second(l.Stat(soon(t), "d/099")),
			"Stat none":   second(l.Stat(soon(t), "d/none")),
			"Stat top":    second(l.Stat(soon(t), "none")),
			"ReadDir":     second(l.ReadDir(soon(t), "d")),
			"Readlink":    second(l.Readlink(soon(t), "d/099")),
			"Open":        second(l.Open(soon(t), "d/099", nil)),
			"Open wanted": second(l.Open(soon(t), "d/099", &a)),
		} {
			if !errors.Is(err, layers.ErrReplaced) {
				t.Errorf("%s: %s: %v, want ErrReplaced", what, call, err)
			}
		}
		if _, errs, err := l.StatMany(soon(t), []layers.Path{"d/099"}); err == nil && !errors.Is(errs[0], layers.ErrReplaced) {
			t.Errorf("%s: StatMany: %v", what, errs[0])
		}
		if lists, err := l.ReadDirs(soon(t), []layers.Path{"d"}); err == nil && !errors.Is(lists[0].Err, layers.ErrReplaced) {
			t.Errorf("%s: ReadDirs: %v", what, lists[0].Err)
		}
	}
}
