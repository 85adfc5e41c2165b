package extent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// waiters waits until n readers share the only flight.
func waiters(o *Object, n int) {
	for {
		o.mu.RLock()
		ok := len(o.flights) == 1 && o.flights[0].waiters == n
		o.mu.RUnlock()
		if ok {
			return
		}
	}
}

func newPending(t *testing.T, content []byte) (*Store, *Object) {
	s := openStore(t, t.TempDir(), bootA)
	o, _, err := s.NewPending(sourceOf(content))
	must(t, err)
	t.Cleanup(func() {
		must(t, o.Close())
		must(t, s.Close())
	})
	return s, o
}

type result struct {
	b   []byte
	err error
}

func readInto(ctx context.Context, o *Object, f Fetcher, n int, off int64) chan result {
	c := make(chan result, 1)
	go func() {
		b := make([]byte, n)
		n, err := o.ReadAt(ctx, f, b, off)
		c <- result{b[:n], err}
	}()
	return c
}

func TestReadersShareAFetch(t *testing.T) {
	content := noise(4*page, 1)
	_, o := newPending(t, content)
	src := &source{content: content, gate: make(chan struct{})}
	var all []chan result
	for i := range 8 {
		all = append(all, readInto(ctx, o, src, 100, int64(i)*100))
	}
	waiters(o, 8)
	src.gate <- struct{}{}
	for i, c := range all {
		r := <-c
		must(t, r.err)
		want(t, "shared", r.b, content[i*100:i*100+100])
	}
	if len(src.asked) != 1 || src.asked[0] != (Range{0, page}) {
		t.Fatalf("asked for %v", src.asked)
	}
}

func TestOtherRangesAreFetchedMeanwhile(t *testing.T) {
	content := noise(4*page, 1)
	_, o := newPending(t, content)
	src := &source{content: content, gate: make(chan struct{}), entered: make(chan struct{})}
	a := readInto(ctx, o, src, page, 0)
	b := readInto(ctx, o, src, page, 2*page)
	<-src.entered // neither
	<-src.entered // has returned
	src.gate <- struct{}{}
	src.gate <- struct{}{}
	want(t, "one", (<-a).b, content[:page])
	want(t, "other", (<-b).b, content[2*page:3*page])

	// A read across both and the pages between asks for those only.
	c := readInto(ctx, o, src, 4*page, 0)
	<-src.entered
	<-src.entered
	src.gate <- struct{}{}
	src.gate <- struct{}{}
	want(t, "all", (<-c).b, content)
	if src.bytes.Load() != 4*page {
		t.Fatalf("fetched %d bytes", src.bytes.Load())
	}
}

func TestAReaderLeaves(t *testing.T) {
	content := noise(page, 1)
	_, o := newPending(t, content)
	src := &source{content: content, gate: make(chan struct{})}
	gone, leave := context.WithCancel(ctx)
	a := readInto(gone, o, src, page, 0)
	waiters(o, 1)
	b := readInto(ctx, o, src, page, 0)
	waiters(o, 2)
	leave()
	if r := <-a; !errors.Is(r.err, context.Canceled) || len(r.b) != 0 {
		t.Fatal(r.err)
	}
	src.gate <- struct{}{}
	r := <-b
	must(t, r.err)
	want(t, "who stayed", r.b, content)
	if len(src.asked) != 1 {
		t.Fatalf("asked %d times", len(src.asked))
	}
}

func TestTheLastReaderEndsTheFetch(t *testing.T) {
	content := noise(page, 1)
	_, o := newPending(t, content)
	ended := make(chan error)
	src := fetchFunc(func(ctx context.Context, b []byte, off int64) (int, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	})
	gone, leave := context.WithCancel(ctx)
	a := readInto(gone, o, src, page, 0)
	waiters(o, 1)
	leave()
	if err := <-ended; err != context.Canceled {
		t.Fatal(err)
	}
	<-a
	// Who comes now does not meet the cancelled one.
	want(t, "later", contentOf(t, o, &source{content: content}), content)
}

type fetchFunc func(ctx context.Context, b []byte, off int64) (int, error)

func (f fetchFunc) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	return f(ctx, b, off)
}

func TestSomebodyElsesFetchFails(t *testing.T) {
	content := noise(page, 1)
	_, o := newPending(t, content)
	theirs := &source{content: content, gate: make(chan struct{})}
	a := readInto(ctx, o, theirs, page, 0)
	waiters(o, 1)
	b := readInto(ctx, o, &source{content: content}, page, 0)
	c := readInto(ctx, o, &source{err: layers.ErrOffline}, page, 0)
	waiters(o, 3)
	theirs.closed.Store(true)
	close(theirs.gate)
	if r := <-b; r.err != nil || !bytes.Equal(r.b, content) {
		t.Errorf("with a good source of its own: %v", r.err)
	}
	if r := <-a; r.err == nil && !bytes.Equal(r.b, content) {
		t.Error("the one whose source was closed got other bytes")
	}
	if r := <-c; r.err != nil && !errors.Is(r.err, layers.ErrOffline) {
		t.Errorf("with a bad source of its own: %v", r.err)
	}
}

// What is written, zeroed or cut off while a fetch is under way stays so.
func TestChangesDuringAFetchWin(t *testing.T) {
	content := noise(4*page, 1)
	for _, c := range []struct {
		name   string
		change func(o *Object) error
		model  func() []byte
	}{
		{"write", func(o *Object) error {
			_, err := o.WriteAt([]byte("mine"), page+10)
			return err
		}, func() []byte {
			m := append([]byte(nil), content...)
			copy(m[page+10:], "mine")
			return m
		}},
		{"punch", func(o *Object) error { return o.Punch(100, 2*page) }, func() []byte {
			m := append([]byte(nil), content...)
			clear(m[100 : 100+2*page])
			return m
		}},
		{"cut and grow", func(o *Object) error {
			return errors.Join(o.Truncate(page), o.Truncate(5*page))
		}, func() []byte {
			return append(append([]byte(nil), content[:page]...), make([]byte, 4*page)...)
		}},
		{"cut", func(o *Object) error { return o.Truncate(page + 1) }, func() []byte {
			return content[:page+1]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, o := newPending(t, content)
			src := &source{content: content, gate: make(chan struct{})}
			early := readInto(ctx, o, src, 4*page, 0)
			waiters(o, 1)
			must(t, c.change(o))
			late := readInto(ctx, o, src, 6*page, 0)
			if o.PresentRange(0, 4*page) {
				t.Fatal("nothing left to fetch: the test tests nothing")
			}
			waiters(o, 2)
			src.gate <- struct{}{}
			r := <-late
			want(t, "begun after the change", r.b, c.model())
			<-early
			want(t, "afterwards", contentOf(t, o, nil), c.model())
		})
	}
}

func TestFill(t *testing.T) {
	content := noise(3*window+5, 1)
	_, o := newPending(t, content)
	src := &source{content: content}
	must(t, o.Fill(ctx, src, window+1, 100))
	if got := o.Missing(); got != int64(len(content))-page {
		t.Fatalf("missing %d", got)
	}
	must(t, o.Fill(ctx, src, 0, 1<<50))
	want(t, "filled", contentOf(t, o, nil), content)
	if src.bytes.Load() != int64(len(content)) {
		t.Fatalf("fetched %d bytes of %d", src.bytes.Load(), len(content))
	}
}

// Fragments of a page come with one exchange, not one each.
func TestWrittenGapsAreOneFetch(t *testing.T) {
	content := noise(8*page, 1)
	_, o := newPending(t, content)
	model := append([]byte(nil), content...)
	for off := 0; off < len(content); off += 64 {
		_, err := o.WriteAt([]byte("x"), int64(off))
		must(t, err)
		model[off] = 'x'
	}
	src := &source{content: content}
	want(t, "mixed", contentOf(t, o, src), model)
	if len(src.asked) != 1 {
		t.Fatalf("asked %d times", len(src.asked))
	}
}

func TestPresentReadsAllocateNothing(t *testing.T) {
	content := noise(64*page, 1)
	_, o := newPending(t, content)
	must(t, o.Fill(ctx, &source{content: content}, 0, 64*page))
	b := make([]byte, 32*page)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := o.ReadAt(ctx, nil, b, page); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// Writers own every eighth byte; readers, truncates beyond the writers' part,
// syncs and compactions run among them. Each writer must see its own bytes.
func TestAtOnce(t *testing.T) {
	content := noise(32*page, 1)
	_, o := newPending(t, content)
	src := &source{content: content}
	const part = 16 * page
	var wg sync.WaitGroup
	start := func(f func(rng *rand.Rand)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(rand.New(rand.NewSource(7)))
		}()
	}
	for w := range int64(4) {
		start(func(rng *rand.Rand) {
			mine := append([]byte(nil), content[w*part/4:(w+1)*part/4]...)
			got := make([]byte, len(mine))
			for range 150 {
				off, n := rng.Intn(len(mine)-300), 1+rng.Intn(300)
				rng.Read(mine[off : off+n])
				if _, err := o.WriteAt(mine[off:off+n], w*part/4+int64(off)); err != nil {
					t.Error(err)
				}
				off, n = rng.Intn(len(mine)-page), 1+rng.Intn(page)
				if _, err := o.ReadAt(ctx, src, got[:n], w*part/4+int64(off)); err != nil || !bytes.Equal(got[:n], mine[off:off+n]) {
					t.Errorf("writer %d reads another's bytes at %d+%d, %v", w, off, n, err)
				}
			}
		})
	}
	start(func(rng *rand.Rand) {
		for range 40 {
			if err := o.Truncate(part + rng.Int63n(20*page)); err != nil {
				t.Error(err)
			}
		}
	})
	start(func(rng *rand.Rand) {
		for range 20 {
			if err := o.Sync(true); err != nil {
				t.Error(err)
			}
			o.wmu.Lock()
			o.compactAt = 0
			o.wmu.Unlock()
		}
	})
	start(func(rng *rand.Rand) {
		for range 100 {
			b := make([]byte, 8*page)
			off := part + rng.Int63n(16*page)
			n, _ := o.ReadAt(ctx, src, b, off)
			for i, c := range b[:n] {
				if at := off + int64(i); c != 0 && (at >= int64(len(content)) || c != content[at]) {
					t.Errorf("byte %d is %d", at, c)
				}
			}
		}
	})
	wg.Wait()
}

// A file that ends where offsets do, as far as this filesystem lets it.
func TestHugeFile(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	pattern := fetchFunc(func(_ context.Context, b []byte, off int64) (int, error) {
		for i := range b {
			b[i] = byte((off+int64(i))>>3) | 1
		}
		return len(b), nil
	})
	src := sourceOf(nil)
	var o *Object
	for _, size := range []int64{maxSize, 16<<40 - page - 3, 1<<40 + 5} {
		src.Version.Size = size
		var err error
		if o, err = s.Cached(src); err == nil {
			break
		}
		if !errors.Is(err, unix.EFBIG) && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
	}
	if o == nil {
		t.Fatal("no huge file at all")
	}
	defer o.Close()
	size := o.Size()
	b := make([]byte, 3*page)
	n, err := o.ReadAt(ctx, pattern, b, size-2*page)
	if n != 2*page || err != io.EOF {
		t.Fatal(n, err)
	}
	for i, c := range b[:n] {
		if c != byte((size-2*page+int64(i))>>3)|1 {
			t.Fatalf("byte %d is %d", i, c)
		}
	}
	must(t, o.Fill(ctx, pattern, size-5*page, maxSize-size+5*page))
	if got := size - o.Missing(); got < 5*page || got > 6*page {
		t.Fatalf("%d bytes are present", got)
	}
	if !o.PresentRange(size-5*page, maxSize) || o.PresentRange(0, maxSize) {
		t.Fatal("present: not the last five pages")
	}
}

func TestSourcesThatCannotBe(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	good := sourceOf(noise(10, 1))
	for name, change := range map[string]func(*Source){
		"path that escapes": func(s *Source) { s.Path = "a/../../b" },
		"NUL in the path":   func(s *Source) { s.Path = "a\x00b" },
		"endless path":      func(s *Source) { s.Path = layers.Path(strings.Repeat("a/", maxPath) + "b") },
		"negative size":     func(s *Source) { s.Version.Size = -1 },
		"impossible time":   func(s *Source) { s.Version.Mtime.Nsec = 1e9 },
		"FIFO":              func(s *Source) { s.Mode = unix.S_IFIFO },
	} {
		src := good
		change(&src)
		if _, err := s.Cached(src); err == nil {
			t.Errorf("%s: cached", name)
		}
		if _, _, err := s.NewPending(src); err == nil {
			t.Errorf("%s: pending", name)
		}
	}
	if names, err := s.names(); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// fetcher is a Fetcher that is a function.
type fetcher func(ctx context.Context, b []byte, off int64) (int, error)

func (f fetcher) ReadAt(ctx context.Context, b []byte, off int64) (int, error) { return f(ctx, b, off) }

// Who joins a fetch of somebody else that fails in the end tries by itself, and the source is
// told for how long it has waited: together no longer than anybody else waits.
func TestJoinedFetchFailsInTime(t *testing.T) {
	const timeout = time.Minute
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	content := noise(64<<10, 1)
	o := cached(t, s, sourceOf(content))
	defer o.Close()
	synctest.Test(t, func(t *testing.T) {
		// As layers/remote does it with a source that does not answer.
		away := fetcher(func(ctx context.Context, _ []byte, _ int64) (int, error) {
			time.Sleep(timeout - layers.Waited(ctx))
			return 0, layers.ErrOffline
		})
		var readers sync.WaitGroup
		for i := range 3 {
			readers.Go(func() {
				time.Sleep(time.Duration(i) * timeout / 4)
				began := time.Now()
				if _, err := o.ReadAt(t.Context(), away, make([]byte, 4096), 0); !errors.Is(err, layers.ErrOffline) {
					t.Errorf("%v, want ErrOffline", err)
				}
				if d := time.Since(began); d > timeout {
					t.Errorf("who came after %v waited for %v", time.Duration(i)*timeout/4, d)
				}
			})
		}
		readers.Wait()
	})
}
