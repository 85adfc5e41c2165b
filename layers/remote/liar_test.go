package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// mangler is a stream of packets from a server, which come late, out of order,
// twice, cut, damaged or never.
type mangler struct {
	transport
	random *rand.Rand
	rate   float64 // how many of the packets
	bodies bool    // what packets hold is damaged, too

	out  *io.PipeReader
	in   *io.PipeWriter
	over chan struct{}
	once sync.Once
}

func mangle(t transport, random *rand.Rand, rate float64, bodies bool) *mangler {
	m := &mangler{transport: t, random: random, rate: rate, bodies: bodies, over: make(chan struct{})}
	m.out, m.in = io.Pipe()
	go m.run()
	return m
}

func (m *mangler) Read(b []byte) (int, error) { return m.out.Read(b) }

func (m *mangler) Close() error {
	m.once.Do(func() {
		m.out.Close()
		m.transport.Close()
		<-m.over
	})
	return nil
}

// packets hands on what the server sends, packet by packet.
func (m *mangler) packets(to chan<- []byte) {
	defer close(to)
	for {
		var head [4]byte
		if _, err := io.ReadFull(m.transport, head[:]); err != nil {
			return
		}
		p := make([]byte, 4+binary.BigEndian.Uint32(head[:]))
		copy(p, head[:])
		if _, err := io.ReadFull(m.transport, p[4:]); err != nil {
			return
		}
		to <- p
	}
}

func (m *mangler) run() {
	defer close(m.over)
	defer m.in.Close()
	came := make(chan []byte)
	go m.packets(came)
	defer func() {
		m.out.Close()
		for range came {
		}
	}()
	var held [][]byte
	first := true
	for {
		var p []byte
		select {
		case b, ok := <-came:
			if !ok {
				return
			}
			p = b
		case <-time.After(5 * time.Millisecond):
			if len(held) == 0 {
				continue
			}
			p, held = held[0], held[1:]
		}
		if !first && m.random.Float64() < m.rate {
			switch m.random.IntN(12) {
			case 0:
				return
			case 1:
				p = append(p, p...)
			case 2:
				p = nil
			case 3:
				binary.BigEndian.PutUint32(p[5:], m.random.Uint32N(1000))
			case 4:
				binary.BigEndian.PutUint32(p, m.random.Uint32())
			case 5:
				p = p[:5+m.random.IntN(len(p)-5)]
			case 6:
				if m.bodies && len(p) > 9 {
					p[9+m.random.IntN(len(p)-9)] ^= byte(1 << m.random.IntN(8))
				}
			case 7:
				if m.bodies {
					p[4] = byte(100 + m.random.IntN(8))
				}
			default:
				held, p = append(held, p), nil
			}
		}
		first = false
		if _, err := m.in.Write(p); err != nil {
			return
		}
	}
}

// TestMangled: whatever comes of packets on their way, in whatever order, what a
// call returns is right, or says that the source is away or broke the protocol. What
// packets hold is not touched here: that is the server's word.
//
// MIGRATEFS_LIAR_SEED repeats one run.
func TestMangled(t *testing.T) { mangled(t, false) }

// TestMangledBodies: the same with their bodies damaged as well. What is returned may
// be anything then; nothing hangs, loops or panics.
func TestMangledBodies(t *testing.T) { mangled(t, true) }

func mangled(t *testing.T, bodies bool) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MIGRATEFS_LIAR_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("MIGRATEFS_LIAR_SEED=%d", seed)
	f := newSlots()
	var mu sync.Mutex // of the next two
	var liars []*mangler
	honest := true // for the first connection, or there is no layer
	l := f.open(t, func(c *Config) {
		c.Timeout = 2 * time.Second
		c.pace.lane, c.pace.healthy = time.Millisecond, time.Millisecond
		dial := c.dial
		c.dial = func(ctx context.Context) (transport, error) {
			tr, err := dial(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || honest {
				return tr, err
			}
			m := mangle(tr, rand.New(rand.NewPCG(seed, uint64(1+len(liars)))), 0.01, bodies)
			liars = append(liars, m)
			return m, nil
		}
	})
	files := f.wanted(t, l, "d")
	mu.Lock()
	honest = false
	mu.Unlock()
	hangUp(l)

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var right, wrong atomic.Int64
	for g := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1000+g))
			for ctx.Err() == nil {
				what, err := ask(ctx, f, l, files, r)
				var bad *untrue
				switch {
				case errors.As(err, &bad) && !bodies:
					t.Errorf("%s: %v", what, err)
					return
				case err == nil:
					right.Add(1)
				case ctx.Err() != nil, bodies, errors.Is(err, layers.ErrOffline), errors.Is(err, layers.ErrCorrupt),
					errors.Is(err, layers.ErrReplaced): // a packet that was cut goes on with the next one's bytes
					wrong.Add(1)
				default:
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d right, %d errors, %d connections", right.Load(), wrong.Load(), l.Stats().Connects)
	if right.Load() == 0 {
		t.Error("nothing was ever right")
	}
	mu.Lock()
	honest = true
	mu.Unlock()
	for _, m := range liars { // which are all there will be
		m.Close()
	}
	end := soon(t)
	b, err := content(end, l, "f", 1000)
	for ; err != nil && end.Err() == nil; b, err = content(end, l, "f", 1000) {
		time.Sleep(time.Millisecond) // until the layer has seen that they are gone
	}
	if err != nil || !bytes.Equal(b, f.files["/src/f"].data[:1000]) {
		t.Errorf("by an honest server: %v", err)
	}
}

// untrue is an answer that is not what the server has.
type untrue struct{ what string }

func (u *untrue) Error() string { return u.what }

// ask asks something at random and compares the answer with what f has.
func ask(ctx context.Context, f *fake, l *Layer, files []layers.Wanted, r *rand.Rand) (string, error) {
	if r.IntN(4) == 0 {
		ctx = layers.Background(ctx)
	}
	w := files[r.IntN(len(files))]
	data := f.files["/src/"+string(w.Path)].data
	switch r.IntN(6) {
	case 0:
		a, err := l.Stat(ctx, w.Path)
		if err == nil && !a.SameVersion(w.Attr) {
			err = &untrue{fmt.Sprintf("%+v", a)}
		}
		return "stat", err
	case 1:
		_, err := l.Stat(ctx, "d/none")
		switch {
		case err == nil:
			err = &untrue{"it has attributes"}
		case errors.Is(err, unix.ENOENT):
			err = nil
		}
		return "stat of nothing", err
	case 2:
		list, err := l.ReadDir(ctx, "d")
		if err == nil && len(list) != 150 {
			err = &untrue{fmt.Sprintf("%d names", len(list))}
		}
		return "readdir", err
	case 3:
		some := files[:1+r.IntN(len(files))]
		all, err := l.ReadMany(ctx, some)
		for i := range all {
			if err == nil {
				err = all[i].Err
			}
			if all[i].Err == nil && err == nil && !bytes.Equal(all[i].Data, f.files["/src/"+string(some[i].Path)].data) {
				err = &untrue{"other bytes"}
			}
		}
		return "read many", err
	case 4:
		off, n := r.IntN(300_000), 1+r.IntN(200_000)
		b := make([]byte, n)
		file, err := l.Open(ctx, "f", nil)
		if err != nil {
			return "open", err
		}
		defer file.Close()
		if _, err = file.ReadAt(ctx, b, int64(off)); err == nil && !bytes.Equal(b, f.files["/src/f"].data[off:off+n]) {
			err = &untrue{"other bytes"}
		}
		return "read", err
	}
	file, err := l.Open(ctx, w.Path, w.Attr)
	if err != nil {
		return "open a small file", err
	}
	defer file.Close()
	b := make([]byte, len(data)+1)
	n, err := file.ReadAt(ctx, b, 0)
	if err == io.EOF {
		err = nil
	}
	if err == nil && !bytes.Equal(b[:n], data) {
		err = &untrue{"other bytes"}
	}
	return "read a small file", err
}

// TestEndlessListing: a directory that never ends does, whatever comes in place of
// new names; and one name that cannot be is not a line of the log each time.
func TestEndlessListing(t *testing.T) {
	n := &fakeFile{mode: unix.S_IFREG | 0o644}
	repeat := func(entry []byte) []byte {
		const names = 20
		return cat(u32(names), bytes.Repeat(entry, names))
	}
	for what, body := range map[string][]byte{
		"the same name": repeat(listed("same", "", n)),
		"no names":      u32(0),
		"no real name":  repeat(listed("a/b", "", n)),
		"dots":          repeat(listed(".", "", n)),
	} {
		for _, slots := range []bool{false, true} {
			f := newSlots()
			f.slots = slots
			log := &lines{}
			l := f.open(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
			if slots {
				withLanes(t, l)
			}
			before := log.n.Load()
			f.set(func() {
				f.lie = func(q *query) ([]byte, bool) {
					return packet(fxpName, q.id, body), q.typ == fxpReaddir
				}
			})
			if list, err := l.ReadDir(soon(t), "d"); !errors.Is(err, unix.EOVERFLOW) {
				t.Errorf("%s: %d names, %v, want EOVERFLOW", what, len(list), err)
			}
			if lists, err := l.ReadDirs(soon(t), []layers.Path{"d", "e"}); err == nil && (lists[0].Err == nil || lists[1].Err == nil) {
				t.Errorf("%s: %v, %v", what, lists[0].Err, lists[1].Err)
			}
			if n := log.n.Load() - before; n > 200 {
				t.Errorf("%s: %d lines in the log", what, n)
			}
		}
	}
}

// lines counts writes.
type lines struct{ n atomic.Int64 }

func (l *lines) Write(b []byte) (int, error) {
	l.n.Add(1)
	return len(b), nil
}

// TestAbsurdEntries: what cannot be true of an entry is not believed, and costs
// only that entry its attributes.
func TestAbsurdEntries(t *testing.T) {
	f := newFake()
	l := f.open(t)
	entry := func(name, longname string, attrs ...[]byte) []byte {
		return cat(str(str(nil, name), longname), cat(attrs...))
	}
	all := uint32(attrSize | attrOwner | attrMode | attrTimes)
	reg := uint32(unix.S_IFREG | 0o644)
	entries := map[string][]byte{
		"negative":  entry("negative", "", u32(all), u64(1<<63), u32(0, 0, reg, 1, 1)),
		"huge":      entry("huge", "", u32(all), u64(1<<62+1), u32(0, 0, reg, 1, 1)),
		"no type":   entry("no type", "", u32(all), u64(1), u32(0, 0, 0o644, 1, 1)),
		"all types": entry("all types", "", u32(all), u64(1), u32(0, 0, 0xffffffff, 1, 1)),
		"nothing":   entry("nothing", "", u32(0)),
		"nlink 0":   entry("nlink 0", "-rw-r--r--    0 root", u32(all), u64(1), u32(0, 0, reg, 1, 1)),
		"far":       entry("far", "", u32(all), u64(1), u32(0xffffffff, 0xffffffff, reg, 0xffffffff, 0xffffffff)),
		"fine":      entry("fine", "-rw-r--r--    2 root", u32(all), u64(7), u32(1, 2, reg, 3, 4)),
	}
	f.set(func() {
		f.lie = once(fxpReaddir, func(q *query) []byte {
			var b []byte
			for _, e := range entries {
				b = append(b, e...)
			}
			return packet(fxpName, q.id, cat(u32(uint32(len(entries))), b))
		})
	})
	list, err := l.ReadDir(soon(t), "")
	must(t, err)
	believed := map[string]bool{"nlink 0": true, "far": true, "fine": true, "f": true, "g": true}
	for _, e := range list {
		delete(entries, e.Name)
		if (e.Attr != nil) != believed[e.Name] {
			t.Errorf("%q: %+v", e.Name, e.Attr)
			continue
		}
		switch a := e.Attr; e.Name {
		case "nlink 0":
			if a.Has(layers.KnownNlink) {
				t.Errorf("a file with %d links", a.Nlink)
			}
		case "far":
			if a.Mtime.Sec != 0xffffffff || a.UID != 0xffffffff {
				t.Errorf("%+v", a)
			}
		case "fine":
			if a.Size != 7 || a.Nlink != 2 || a.UID != 1 || a.GID != 2 || a.Mtime.Sec != 4 {
				t.Errorf("%+v", a)
			}
		}
	}
	if len(entries) > 0 {
		t.Errorf("names are missing: %d", len(entries))
	}
}

// TestTinyLimits: a server that says it reads a byte at a time, or holds one handle,
// does not make us send a request for every byte.
func TestTinyLimits(t *testing.T) {
	for _, limit := range []uint64{1, 1 << 63} {
		f := newFake()
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				return packet(fxpExtendedReply, q.id, u64(limit, limit, limit, limit)), q.typ == fxpExtended && q.name == extLimits
			}
		})
		l := f.open(t)
		want := f.files["/src/f"].data
		got, err := content(soon(t), l, "f", len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: %d bytes, %v", limit, len(got), err)
		}
		if n := l.Stats().Requests; n > 500 {
			t.Errorf("%d: %d requests", limit, n)
		}
	}
}

// TestNamesInMessages: what the source names things does not end a line of the log.
func TestNamesInMessages(t *testing.T) {
	f := newFake()
	var log bytes.Buffer
	l := f.open(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	f.set(func() {
		f.lie = once(fxpReaddir, func(q *query) []byte {
			return packet(fxpName, q.id, cat(u32(1), listed("a/\n\x1b[2Jlevel=ERROR msg=forged", "", f.files["/src/f"])))
		})
	})
	_, err := l.ReadDir(soon(t), "")
	must(t, err)
	if s := log.String(); strings.Contains(s, "\x1b") || strings.Contains(s, "\nlevel") {
		t.Errorf("%q", s)
	}
	_, err = l.Stat(soon(t), "x\n\x1b[2J")
	if err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%q", err)
	}
	f.set(func() {
		f.lie = once(fxpLstat, func(q *query) []byte {
			return packet(fxpStatus, q.id, cat(u32(fxFailure), str(nil, "text\n\x1b[2J\xff"), str(nil, "")))
		})
	})
	if _, err = l.Stat(soon(t), "f"); err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%q", err)
	}
}
