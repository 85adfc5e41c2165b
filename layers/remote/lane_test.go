package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// newSlots is a server whose handles are OpenSSH's, with small files in two
// directories and a large one.
func newSlots() *fake {
	f := newFake()
	f.slots = true
	f.files["/src/d"] = &fakeFile{mode: unix.S_IFDIR | 0o755, mtime: 1000}
	f.files["/src/e"] = &fakeFile{mode: unix.S_IFDIR | 0o755, mtime: 1000}
	for i := range 150 {
		f.files[fmt.Sprintf("/src/d/%03d", i)] = &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000, data: random(uint64(i), i*100)}
		f.files[fmt.Sprintf("/src/e/%03d", i)] = &fakeFile{mode: unix.S_IFREG | 0o600, mtime: 2000, data: random(uint64(i)+1000, i*10+1)}
	}
	return f
}

// wanted lists the regular files of directory dir.
func (f *fake) wanted(t *testing.T, l *Layer, dir layers.Path) (all []layers.Wanted) {
	t.Helper()
	list, err := l.ReadDir(soon(t), dir)
	must(t, err)
	for _, e := range list {
		if e.Attr.IsRegular() {
			all = append(all, layers.Wanted{Path: dir.Join(e.Name), Attr: e.Attr})
		}
	}
	return all
}

// withLanes waits until the swift lane and a bulk lane are there.
func withLanes(t *testing.T, l *Layer) {
	t.Helper()
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		c, b := l.swift(), l.bulk(nil)
		if c != nil && b != nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Millisecond):
		case <-soon(t).Done():
			t.Fatal("no lanes")
		}
	}
}

// trips counts the exchanges of one call.
func trips(t *testing.T, l *Layer, what string, want int64, f func()) {
	t.Helper()
	before := l.Stats().Bursts
	f()
	if got := l.Stats().Bursts - before; got != want {
		t.Errorf("%s takes %d exchanges, want %d", what, got, want)
	}
}

// What DESIGN counts, where handles can be predicted and where they cannot.
func TestTrips(t *testing.T) {
	for _, slots := range []bool{true, false} {
		t.Run(fmt.Sprintf("slots=%v", slots), func(t *testing.T) {
			f := newSlots()
			f.slots = slots
			l := f.open(t)
			files := f.wanted(t, l, "d")
			if slots {
				withLanes(t, l)
			}
			once := func(yes, no int64) int64 {
				if slots {
					return yes
				}
				return no
			}
			var file layers.File
			var err error
			var a layers.Attr
			trips(t, l, "stat", 1, func() { a, err = l.Stat(soon(t), "d/099") })
			must(t, err)
			b := make([]byte, 9900)
			trips(t, l, "open and read", once(1, 2), func() {
				if file, err = l.Open(soon(t), "d/099", &a); err == nil {
					_, err = file.ReadAt(soon(t), b, 0)
				}
			})
			if err != nil || !bytes.Equal(b, f.files["/src/d/099"].data) {
				t.Error(err)
			}
			trips(t, l, "a second read", once(0, 1), func() { _, err = file.ReadAt(soon(t), b[:100], 50) })
			must(t, err)
			must(t, file.Close())
			trips(t, l, "many files", once(1, 2), func() { f.checkMany(soon(t), t, l, files) })
			trips(t, l, "a directory", once(1, 2), func() { _, err = l.ReadDir(soon(t), "e") })
			must(t, err)
			var lists []layers.Listing
			trips(t, l, "three directories", once(1, 2), func() { lists, err = l.ReadDirs(soon(t), []layers.Path{"d", "e", ""}) })
			must(t, err)
			for i, n := range []int{150, 150, 4} {
				if len(lists[i].Entries) != n || lists[i].Err != nil {
					t.Errorf("directory %d: %d names, %v", i, len(lists[i].Entries), lists[i].Err)
				}
			}
			if n := l.Stats().Predicted; (n > 0) != slots {
				t.Errorf("%d were predicted", n)
			}
		})
	}
}

// checkMany reads files and compares what comes.
func (f *fake) checkMany(ctx context.Context, t *testing.T, l *Layer, files []layers.Wanted) {
	t.Helper()
	got, err := l.ReadMany(ctx, files)
	if err != nil || len(got) != len(files) {
		t.Fatal(len(got), err)
	}
	for i, c := range got {
		if want := f.files["/src/"+string(files[i].Path)].data; c.Err != nil || !bytes.Equal(c.Data, want) || !c.Settled {
			t.Fatalf("%q: %d bytes, settled is %v, %v", files[i].Path, len(c.Data), c.Settled, c.Err)
		}
	}
}

// Every file of ReadMany has its own verdict, in one exchange and in two.
func TestManyVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, slots := range []bool{true, false} {
			f := newSlots()
			f.slots = slots
			f.files["/src/d/010"].mtime = uint32(time.Now().Unix())
			l := f.open(t)
			files := f.wanted(t, l, "d")
			if slots {
				withLanes(t, l)
			}
			attr := func(size int64) *layers.Attr {
				return &layers.Attr{Known: layers.KnownSize, Mode: unix.S_IFREG | 0o644, Size: size}
			}
			more := []layers.Wanted{
				{Path: "d/150", Attr: attr(5)},
				{Path: "d/001", Attr: &layers.Attr{Known: layers.KnownSize, Mode: unix.S_IFIFO | 0o644}},
				{Path: "d/001"},
				{Path: "../x", Attr: attr(1)},
				{Path: "d/001", Attr: attr(manyBytes + 1)},
			}
			f.set(func() {
				f.files["/src/d/003"].mtime++                // after it was listed
				delete(f.files, "/src/d/004")                // gone
				f.files["/src/d/005"].mode = unix.S_IFIFO    // another type
				f.files["/src/d/006"].data = random(7, 1000) // another size
				f.lie = func(q *query) ([]byte, bool) {
					switch {
					case q.typ == fxpOpen && q.name == "/src/d/007":
						return status(q.id, fxPermissionDenied), true
					case q.typ == fxpRealpath && q.name == "/src/e":
						return packet(fxpName, q.id, cat(u32(1), str(str(nil, "/src/d"), ""), u32(0))), true
					}
					return nil, false
				}
			})
			files = append(files, layers.Wanted{Path: "e/001", Attr: attr(11)})
			got, err := l.ReadMany(soon(t), append(files, more...))
			must(t, err)
			wants := map[int]error{
				3: layers.ErrStale, 4: layers.ErrStale, 5: layers.ErrStale, 6: layers.ErrStale, 7: unix.EACCES, 150: layers.ErrStale,
				151: layers.ErrStale, 152: layers.ErrNotRegular, 153: unix.EINVAL, 154: unix.EINVAL, 155: unix.EFBIG,
			}
			for i, c := range got {
				want, bad := wants[i]
				switch {
				case bad && (!errors.Is(c.Err, want) || c.Data != nil):
					t.Errorf("slots=%v, %d: %d bytes, %v, want %v", slots, i, len(c.Data), c.Err, want)
				case !bad && (c.Err != nil || !bytes.Equal(c.Data, f.files["/src/"+string(files[i].Path)].data)):
					t.Errorf("slots=%v, %d: %v", slots, i, c.Err)
				case !bad && c.Settled == (i == 10):
					t.Errorf("slots=%v, %d: settled is %v", slots, i, c.Settled)
				}
			}
			f.set(func() {
				f.lie = nil
				f.fsid = 8
			})
			if _, err := l.ReadMany(soon(t), files[:1]); !errors.Is(err, layers.ErrReplaced) {
				t.Errorf("slots=%v: %v, want ErrReplaced", slots, err)
			}
			if _, err := l.ReadDirs(soon(t), []layers.Path{"d"}); !errors.Is(err, layers.ErrReplaced) {
				t.Errorf("slots=%v: %v, want ErrReplaced", slots, err)
			}
		}
	})
}

// What a server does that predicts at first and then does not: nothing wrong is
// handed out, the practice ends, and everything goes on.
func TestUnpredicted(t *testing.T) {
	for what, lie := range map[string]func(f *fake, q *query) []byte{
		"another handle": func(f *fake, q *query) []byte {
			if q.typ == fxpOpen {
				return packet(fxpHandle, q.id, str(nil, "h"))
			}
			return nil
		},
		"another file": func(f *fake, q *query) []byte {
			if q.typ == fxpOpen {
				q.name = "/src/e/149"
				return f.honest(q)
			}
			return nil
		},
		"no close": func(f *fake, q *query) []byte {
			if q.typ == fxpClose {
				return status(q.id, fxFailure)
			}
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := newSlots()
			l := f.open(t)
			files := f.wanted(t, l, "d")
			withLanes(t, l)
			f.checkMany(soon(t), t, l, files)
			f.set(func() {
				f.lie = func(q *query) ([]byte, bool) {
					if q.session == 1 {
						return nil, false
					}
					b := lie(f, q)
					return b, b != nil
				}
			})
			file, err := l.Open(soon(t), files[99].Path, files[99].Attr)
			must(t, err)
			defer file.Close()
			b := make([]byte, 9900)
			if _, err := file.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b, f.files["/src/d/099"].data) {
				t.Error(err)
			}
			if what == "another file" {
				return // it is one file's verdict, not the channel's
			}
			f.checkMany(soon(t), t, l, files)
			_, err = l.ReadDirs(soon(t), []layers.Path{"d", "e", ""})
			must(t, err)
			if l.swift() != nil {
				t.Error("there is a swift lane still")
			}
		})
	}
}

// Answers that do not come in order are not believed, either.
func TestOutOfOrder(t *testing.T) {
	f := newSlots()
	l := f.open(t)
	files := f.wanted(t, l, "d")
	withLanes(t, l)
	var held []byte
	f.set(func() {
		f.lie = func(q *query) ([]byte, bool) {
			if q.session == 1 {
				return nil, false
			}
			if q.typ == fxpRead && held == nil {
				held = f.honest(q)
				return nil, true
			}
			b := f.honest(q)
			if len(held) > 0 {
				b, held = append(b, held...), []byte{}
			}
			return b, true
		}
	})
	f.checkMany(soon(t), t, l, files)
	if !l.erratic.Load() {
		t.Error("answers out of order were believed")
	}
}

// Demand and background have connections of their own, all logins are made one
// after the other, and nothing is open on a lane between calls.
func TestBackgroundApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSlots()
		var seen sync.Map // session: what for
		var mixed atomic.Bool
		f.lie = func(q *query) ([]byte, bool) {
			if q.typ != fxpRead {
				return nil, false
			}
			n := q.rest.U64()
			q.rest = decode(cat(u64(n), q.rest.B))
			what := "demand"
			if n >= 200_000 {
				what = "background"
			}
			if before, ok := seen.LoadOrStore(q.session, what); ok && before != what {
				mixed.Store(true)
			}
			return nil, false
		}
		l := f.open(t, func(c *Config) { c.far = -1 })
		withLanes(t, l)
		file, err := l.Open(soon(t), "f", nil)
		must(t, err)
		defer file.Close()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx, off := soon(t), int64(i)*1000
				if i%2 == 0 {
					ctx, off = layers.Background(ctx), 200_000
				}
				b := make([]byte, 150_000)
				if _, err := file.ReadAt(ctx, b, off); err != nil || !bytes.Equal(b, f.files["/src/f"].data[off:off+150_000]) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if mixed.Load() {
			t.Error("one connection served both")
		}
		f.checkMany(layers.Background(soon(t)), t, l, f.wanted(t, l, "d"))
		synctest.Wait() // nobody waits for the answer to a CLOSE
		f.set(func() {
			if len(f.handles) != 1 {
				t.Errorf("%d handles are open, want the one of the file", len(f.handles))
			}
		})
	})
}

// With a single connection everything works as well.
func TestOneConnection(t *testing.T) {
	for _, n := range []int{1, 2, 3, 8} {
		f := newSlots()
		l := f.open(t, func(c *Config) { c.Connections, c.far = n, -1 })
		for _, ctx := range []context.Context{soon(t), layers.Background(soon(t))} {
			for range 3 {
				f.checkMany(ctx, t, l, f.wanted(t, l, "d"))
				_, err := l.ReadDirs(ctx, []layers.Path{"d", "e"})
				must(t, err)
				file, err := l.Open(ctx, "f", nil)
				must(t, err)
				b := make([]byte, 500_000)
				if _, err := file.ReadAt(ctx, b, 0); err != nil || !bytes.Equal(b, f.files["/src/f"].data) {
					t.Error(err)
				}
				must(t, file.Close())
			}
		}
		f.set(func() {
			if f.serving > n {
				t.Errorf("%d connections of %d", f.serving, n)
			}
		})
		for got := 0; got != min(n, 3) && got != n; got = l.Stats().Connections {
			if err := soon(t).Err(); err != nil {
				t.Fatalf("%d connections of %d", got, n)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// A server that grants one connection and no more is not asked for them over and
// over, and is used with that one.
func TestLanesRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, refusal := range []error{
			&connectError{what: "full"}, &connectError{verdict: verdictRefused, what: "full"}, &connectError{verdict: verdictDenied, what: "one only"},
		} {
			f := newSlots()
			var dials atomic.Int32
			l := f.open(t, func(c *Config) {
				dial := c.dial
				c.pace.lane = time.Hour
				c.dial = func(ctx context.Context) (transport, error) {
					if dials.Add(1) == 1 {
						return dial(ctx)
					}
					return nil, refusal
				}
			})
			for range 5 {
				files := f.wanted(t, l, "d")
				f.checkMany(layers.Background(soon(t)), t, l, files)
				f.checkMany(soon(t), t, l, files)
			}
			if n := dials.Load(); n != 2 {
				t.Errorf("%v: %d logins", refusal, n)
			}
			if err := l.Offline(); err != nil {
				t.Error(err)
			}
		}
	})
}

// Lanes that are lost come back, and what was under way is asked again.
func TestLaneLost(t *testing.T) {
	f := newSlots()
	l := f.open(t)
	files := f.wanted(t, l, "d")
	withLanes(t, l)
	for range 20 {
		c := l.swift()
		if c == nil {
			withLanes(t, l)
			c = l.swift()
		}
		b := l.bulk(nil)
		go c.fail(lost(io.EOF), nil)
		if b != nil {
			go b.fail(lost(io.EOF), nil)
		}
		f.checkMany(soon(t), t, l, files)
		f.checkMany(layers.Background(soon(t)), t, l, files)
	}
	withLanes(t, l)
	hangUp(l)
	f.checkMany(soon(t), t, l, files)
}

// A lane leads to the root that was mounted, or is none.
func TestLaneReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSlots()
		l := f.open(t, func(c *Config) { c.pace.lane = time.Hour })
		a, err := l.Stat(soon(t), "d/001")
		must(t, err)
		f.set(func() { f.fsid = 8 })
		if _, err := l.ReadMany(layers.Background(soon(t)), []layers.Wanted{{Path: "d/001", Attr: &a}}); !errors.Is(err, layers.ErrReplaced) {
			t.Errorf("%v, want ErrReplaced", err)
		}
		for after := (time.Time{}); after.IsZero(); {
			l.mu.Lock()
			after = l.lanes.after
			l.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		f.set(func() { f.fsid = 7 })
		if n := l.Stats().Connections; n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// Content that came along is bounded: what is too much is read again, by path.
func TestCarriedBound(t *testing.T) {
	f := newSlots()
	big := random(1, carryMost)
	f.files["/src/big"] = &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000, data: big}
	l := f.open(t)
	a, err := l.Stat(soon(t), "big")
	must(t, err)
	f.wanted(t, l, "d")
	withLanes(t, l)
	var open []layers.File
	for range carryAll/carryMost + 10 {
		file, err := l.Open(soon(t), "big", &a)
		must(t, err)
		open = append(open, file)
	}
	if l.carried.size > carryAll {
		t.Errorf("%d bytes are held", l.carried.size)
	}
	b := make([]byte, 1000)
	for i, file := range open {
		if _, err := file.ReadAt(soon(t), b, 500); err != nil || !bytes.Equal(b, big[500:1500]) {
			t.Fatal(i, err)
		}
	}
	f.set(func() { delete(f.files, "/src/big") })
	last := open[len(open)-1]
	if _, err := last.ReadAt(soon(t), b, 900); err != nil || !bytes.Equal(b, big[900:1900]) {
		t.Error("what came along does not need the source", err)
	}
	for _, file := range open {
		must(t, file.Close())
	}
	if l.carried.size != 0 || l.carried.files.Len() != 0 {
		t.Errorf("%d bytes are held at the end", l.carried.size)
	}
}

// A FIFO that was put in a file's place costs a lane once, and is not opened again.
func TestManyHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSlots()
		l := f.open(t, func(c *Config) { c.Timeout = 3 * time.Second })
		files := f.wanted(t, l, "d")
		withLanes(t, l)
		var opens atomic.Int32
		var stuck sync.Map // sessions
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ == fxpOpen && q.name == "/src/d/077" {
					opens.Add(1)
					stuck.Store(q.session, true)
					f.set(func() { f.files["/src/d/077"].mode = unix.S_IFIFO | 0o644 })
				}
				_, hangs := stuck.Load(q.session)
				return nil, hangs
			}
		})
		got, err := l.ReadMany(soon(t), files)
		must(t, err)
		for i, c := range got {
			if i == 77 && !errors.Is(c.Err, layers.ErrStale) || i != 77 && c.Err != nil {
				t.Errorf("%d: %v", i, c.Err)
			}
		}
		if n := opens.Load(); n != 1 {
			t.Errorf("opened %d times", n)
		}
	})
}

// A file that the server cannot read does not keep it from answering others.
func TestHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSlots()
		l := f.open(t)
		files := f.wanted(t, l, "d")
		withLanes(t, l)
		file, err := l.Open(soon(t), "f", nil)
		must(t, err)
		release := make(chan struct{})
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.session == 1 && q.typ == fxpRead {
					<-release
				}
				return nil, false
			}
		})
		done := make(chan error)
		go func() {
			_, err := file.ReadAt(soon(t), make([]byte, 100), 0)
			done <- err
		}()
		l.mu.Lock()
		main := l.cur
		l.mu.Unlock()
		for main.silent() < slow {
			time.Sleep(10 * time.Millisecond)
		}
		_, err = l.Stat(soon(t), "d/001")
		must(t, err)
		_, err = l.ReadDir(soon(t), "e")
		must(t, err)
		other, err := l.Open(soon(t), files[5].Path, files[5].Attr)
		must(t, err)
		b := make([]byte, 500)
		if _, err := other.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b, f.files["/src/d/005"].data) {
			t.Error(err)
		}
		f.checkMany(soon(t), t, l, files)
		f.checkMany(layers.Background(soon(t)), t, l, files)
		a, err := l.Stat(soon(t), "g")
		must(t, err)
		large, err := l.Open(soon(t), "g", &a)
		must(t, err)
		b = make([]byte, 500_000)
		if _, err := large.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b, f.files["/src/g"].data) {
			t.Error(err)
		}
		close(release)
		if n, err := large.ReadAt(soon(t), b[:1000], 7); n != 1000 || err != nil || !bytes.Equal(b[:1000], f.files["/src/g"].data[7:1007]) {
			t.Error(err)
		}
		must(t, large.Close())
		must(t, <-done)
		if !main.alive() {
			t.Error("the connection that was held up was lost")
		}
	})
}

// A lane that nobody uses ends, and is made again when somebody does.
func TestLaneIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSlots()
		l := f.open(t, func(c *Config) { c.idle = 20 * time.Millisecond })
		files := f.wanted(t, l, "d")
		for range 3 {
			withLanes(t, l)
			f.checkMany(soon(t), t, l, files)
			for l.Stats().Connections > 1 {
				time.Sleep(time.Millisecond)
			}
		}
		if n := l.Stats().Connects; n < 7 {
			t.Errorf("%d logins", n)
		}
	})
}

// What the server learns only behind the read says nothing about the bytes.
func TestWasSettled(t *testing.T) {
	now := time.Unix(5000, 0)
	attr := func(sec int64, known layers.Known) *layers.Attr {
		return &layers.Attr{Known: known | layers.KnownTimes, Mtime: layers.Time{Sec: sec}, Ctime: layers.Time{Sec: sec}}
	}
	exact, sure := layers.KnownCtime, layers.KnownCtime|layers.KnownSettled
	for what, c := range map[string]struct {
		want, a *layers.Attr
		is      bool
	}{
		"old":                      {attr(4998, 0), attr(4998, 0), true},
		"new":                      {attr(4999, 0), attr(4999, 0), false},
		"settled before":           {attr(5000, sure), attr(5000, sure), true},
		"settled behind the read":  {attr(5000, exact), attr(5000, sure), false},
		"old and exact":            {attr(4997, exact), attr(4997, sure), true},
		"by another server's word": {attr(5000, layers.KnownSettled), attr(5000, sure), false},
	} {
		if got := wasSettled(c.want, c.a, now); got != c.is {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// Everything at once, while connections are lost all the time: what is answered is
// right, and nothing is left open.
func TestLanesUnderFire(t *testing.T) {
	for _, slots := range []bool{true, false} {
		t.Run(fmt.Sprintf("slots=%v", slots), func(t *testing.T) { underFire(t, slots) })
	}
}

func underFire(t *testing.T, slots bool) {
	f := newSlots()
	f.slots = slots
	l := f.open(t, func(c *Config) { c.far = -1 })
	files := f.wanted(t, l, "d")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			l.mu.Lock()
			victims := []*conn{l.cur}
			l.lanes.each(func(ln *lane) { victims = append(victims, ln.conn) })
			l.mu.Unlock()
			if c := victims[i%len(victims)]; c != nil {
				c.fail(lost(io.EOF), nil)
			}
		}
	}()
	big := f.files["/src/f"].data
	work := []func(ctx context.Context, i int) error{
		func(ctx context.Context, i int) error {
			some := files[i%100 : i%100+50]
			got, err := l.ReadMany(ctx, some)
			for k, c := range got {
				if c.Err != nil || !bytes.Equal(c.Data, f.files["/src/"+string(some[k].Path)].data) {
					return fmt.Errorf("%q: %d bytes, %w", some[k].Path, len(c.Data), c.Err)
				}
			}
			return err
		},
		func(ctx context.Context, _ int) error {
			lists, err := l.ReadDirs(ctx, []layers.Path{"d", "", "e"})
			for k, n := range []int{150, 4, 150} {
				if err == nil && (lists[k].Err != nil || len(lists[k].Entries) != n) {
					return fmt.Errorf("%d names, %w", len(lists[k].Entries), lists[k].Err)
				}
			}
			return err
		},
		func(ctx context.Context, i int) error {
			w := files[i%len(files)]
			file, err := l.Open(ctx, w.Path, w.Attr)
			if err != nil {
				return err
			}
			defer file.Close()
			b := make([]byte, w.Attr.Size)
			if _, err := file.ReadAt(ctx, b, 0); err != nil || !bytes.Equal(b, f.files["/src/"+string(w.Path)].data) {
				return fmt.Errorf("%q is wrong: %w", w.Path, err)
			}
			return nil
		},
		func(ctx context.Context, i int) error {
			file, err := l.Open(ctx, "f", nil)
			if err != nil {
				return err
			}
			defer file.Close()
			off := i * 997
			b := make([]byte, 300_000)
			if _, err := file.ReadAt(ctx, b, int64(off)); err != nil || !bytes.Equal(b, big[off:off+len(b)]) {
				return fmt.Errorf("wrong at %d: %w", off, err)
			}
			return nil
		},
		func(ctx context.Context, i int) error {
			list, err := l.ReadDir(ctx, "e")
			if err == nil && len(list) != 150 {
				return fmt.Errorf("%d names", len(list))
			}
			return err
		},
	}
	var wg sync.WaitGroup
	for k := range 10 {
		wg.Go(func() {
			ctx := soon(t)
			if k >= 5 {
				ctx = layers.Background(ctx)
			}
			for i := range 20 {
				if err := work[k%5](ctx, i*7+k); err != nil {
					t.Errorf("%d: %v", k, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-stopped
	if _, err := l.Stat(soon(t), "f"); err != nil {
		t.Error(err)
	}
	f.checkMany(soon(t), t, l, files)
	for end, left := soon(t), 1; left > 0; time.Sleep(time.Millisecond) { // a CLOSE may be on its way
		if f.set(func() { left = len(f.handles) }); left > 0 && end.Err() != nil {
			t.Fatalf("%d handles are left open", left)
		}
	}
}
