package extent

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
)

// A machine does random things to one pending object, kills its process and
// cuts its host's power, and compares every byte with a model.
type machine struct {
	t    *testing.T
	rng  *rand.Rand
	dir  string
	boot int
	lazy bool // seldom syncs
	src  *source

	s  *Store
	o  *Object
	id ID

	model   []byte   // what the file holds now
	history [][]byte // what it held since it was last durable, model included
	disk    []byte   // the data file when it was last durable
	mapSize int64    // how much of the map was durable then
	salt    uint32   // of the map of which mapSize speaks
	cut     int64    // the least size since then
	trace   []string
}

func (m *machine) logf(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *machine) fatalf(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.trace {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.fatalf("%v", err)
	}
}

func (m *machine) store() {
	m.s = openStore(m.t, m.dir, fmt.Sprintf("boot-%010d", m.boot))
}

func (m *machine) path(suffix string) string { return filepath.Join(m.dir, m.id.name()+suffix) }

func (m *machine) file(suffix string) []byte {
	b, err := os.ReadFile(m.path(suffix))
	m.check(err)
	return b
}

// begin makes the object: empty, or adopted with some of it fetched.
func (m *machine) begin() {
	m.store()
	src := sourceOf(m.src.content)
	m.model = append([]byte(nil), m.src.content...)
	if m.rng.Intn(2) == 0 {
		var err error
		m.o, m.id, err = m.s.NewPending(src)
		m.check(err)
		m.disk = make([]byte, len(m.model))
	} else {
		o, err := m.s.Cached(src)
		m.check(err)
		m.o = o
		m.salt = o.chain.salt
		for range m.rng.Intn(4) {
			m.read()
		}
		m.id, err = m.s.Adopt(o)
		m.check(err)
		m.disk = nil // not even its size is durable
	}
	m.history = [][]byte{m.model}
	m.mapSize, m.salt, m.cut = 0, m.o.chain.salt, int64(len(m.disk))
	m.changed()
}

// changed notes the state after a change, and a compaction, which syncs.
func (m *machine) changed() {
	m.model = append([]byte(nil), m.model...)
	m.history = append(m.history, m.model)
	m.cut = min(m.cut, int64(len(m.model)))
	if m.o.chain.salt != m.salt {
		m.logf("  (compacted)")
		m.durable()
	}
}

// durable notes that all of the present state is on disk.
func (m *machine) durable() {
	m.history = [][]byte{m.model}
	m.disk = m.file(dataSuffix)
	m.mapSize, m.salt, m.cut = m.o.mapEnd, m.o.chain.salt, int64(len(m.disk))
}

func (m *machine) span() (off, n int64) {
	off = m.rng.Int63n(24 * page)
	n = 1 + m.rng.Int63n(4*page)
	if m.rng.Intn(2) == 0 {
		n = 1 + m.rng.Int63n(50)
	}
	return off, n
}

func (m *machine) resize(size int64) {
	if size <= int64(len(m.model)) {
		m.model = m.model[:size:size]
		return
	}
	m.model = append(append([]byte(nil), m.model...), make([]byte, size-int64(len(m.model)))...)
}

func (m *machine) read() {
	off, n := m.span()
	b := make([]byte, n)
	got, _ := m.o.ReadAt(ctx, m.src, b, off)
	m.logf("read %d+%d = %d", off, n, got)
	expect := m.model[min(off, int64(len(m.model))):min(off+n, int64(len(m.model)))]
	if string(b[:got]) != string(expect) {
		m.fatalf("read %d+%d: wrong (%d bytes, want %d)", off, n, got, len(expect))
	}
	if m.o.chain.salt != m.salt {
		m.changed()
	}
}

func (m *machine) step() {
	switch m.rng.Intn(16) {
	case 0, 1, 2, 3:
		off, n := m.span()
		b := noise(int(n), m.rng.Int63())
		m.logf("write %d+%d", off, n)
		_, err := m.o.WriteAt(b, off)
		m.check(err)
		m.resize(max(int64(len(m.model)), off+n))
		m.model = append([]byte(nil), m.model...)
		copy(m.model[off:], b)
		m.changed()
	case 4, 5, 6:
		m.read()
	case 7:
		size := m.rng.Int63n(24 * page)
		switch m.rng.Intn(8) { // mostly near the end or the limit, or that is soon 0
		case 0, 1, 2:
			size = max(0, int64(len(m.model))-m.rng.Int63n(2*page))
		case 3, 4, 5, 6:
			size = max(0, m.o.limit-m.rng.Int63n(page))
		}
		m.logf("truncate %d", size)
		m.check(m.o.Truncate(size))
		m.resize(size)
		m.changed()
	case 8:
		off, n := m.span()
		m.logf("punch %d+%d", off, n)
		m.check(m.o.Punch(off, n))
		if size := int64(len(m.model)); off < size {
			m.model = append([]byte(nil), m.model...)
			clear(m.model[off:min(size, off+n)])
		}
		m.changed()
	case 9:
		off, n := m.span()
		keep := m.rng.Intn(2) == 0
		m.logf("allocate %d+%d keep=%v", off, n, keep)
		m.check(m.o.Allocate(off, n, keep))
		if !keep {
			m.resize(max(int64(len(m.model)), off+n))
		}
		m.changed()
	case 10, 11:
		if m.lazy {
			return
		}
		m.logf("sync")
		m.check(m.o.Sync(m.rng.Intn(2) == 0))
		m.durable()
	case 12:
		m.logf("sync of the store")
		all := m.s.unsynced.Load()
		m.check(m.s.Sync())
		if all {
			m.durable()
		}
	case 13:
		m.logf("kill")
		m.synced()
		kill(m.s, m.o)
		m.rot(false)
		m.reopen()
		m.verifyExact()
	case 14:
		m.powerLoss()
	case 15:
		m.logf("compact soon")
		if m.lazy {
			return
		}
		m.o.compactAt = m.o.chain.index + 1
	}
}

// synced notes how much of the map is on disk. A process that comes later may not know
// that it is.
func (m *machine) synced() {
	n := int64(len(mustHeader(&m.o.src))) + int64(m.o.durable)*recordLen
	if m.o.chain.salt == m.salt {
		n = max(n, m.mapSize)
	}
	m.mapSize = n
}

// rot damages the data file where a sum will tell, also after a loss of power.
func (m *machine) rot(power bool) {
	var all []piece
	m.o.pieces.each(0, maxSize, func(p *piece) bool {
		if !power || p.old || m.o.clearedAt < 0 {
			all = append(all, *p)
		}
		return true
	})
	if len(all) == 0 || m.rng.Intn(2) == 0 {
		return
	}
	p := all[m.rng.Intn(len(all))]
	at := p.from + m.rng.Int63n(int64(p.n))
	m.logf("byte %d rots", at)
	m.check(poke(m.path(dataSuffix), at, 0))
}

func (m *machine) reopen() {
	m.store()
	o, err := m.s.Pending(m.id)
	m.check(err)
	m.o = o
}

// contents reads all without making it present: what the map says goes on to
// matter.
func (m *machine) contents() []byte {
	b := make([]byte, m.o.Size()+1)
	n, _ := m.o.ReadAt(ctx, unsettled{m.src}, b, 0)
	if int64(n) != m.o.Size() {
		m.fatalf("read %d of %d bytes", n, m.o.Size())
	}
	return b[:n]
}

func (m *machine) verifyExact() {
	if got := m.contents(); string(got) != string(m.model) {
		m.fatalf("content differs at %d (%d bytes, want %d)", differ(got, m.model), len(got), len(m.model))
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// powerLoss kills the process and leaves on disk some of what was not durable.
func (m *machine) powerLoss() {
	m.synced()
	mapDurable := m.mapSize
	kill(m.s, m.o)
	m.rot(true)

	data := m.survivingData(m.file(dataSuffix))
	log := m.file(mapSuffix)
	end := mapDurable + m.rng.Int63n(int64(len(log))-mapDurable+1)
	if m.rng.Intn(3) == 0 {
		end = int64(len(log))
	}
	log = log[:end]
	hole := int64(-1)
	if loose := end - mapDurable; loose > 0 && m.rng.Intn(2) == 0 {
		hole = mapDurable + m.rng.Int63n(loose)
		clear(log[hole:min(end, hole+1+m.rng.Int63n(256))])
	}
	m.logf("power loss: data %d bytes (durable %d), map %d of %d durable, hole at %d", len(data), len(m.disk), mapDurable, end, hole)
	m.check(os.WriteFile(m.path(dataSuffix), data, 0o600))
	m.check(os.WriteFile(m.path(mapSuffix), log, 0o600))
	m.boot++
	m.reopen()

	got := m.contents()
	m.permitted(got)
	m.model = got
	m.history = [][]byte{got}
	m.disk = data
	m.mapSize, m.salt, m.cut = end, m.o.chain.salt, int64(min(len(data), len(got)))
	if hole >= 0 {
		m.mapSize = min(hole, end)
	}
	// The beginning of the map may have been cut further by the reader.
	m.mapSize = min(m.mapSize, m.o.mapEnd)
}

func mustHeader(src *Source) []byte {
	b, _ := encodeHeader(src, 0)
	return b
}

// survivingData mixes the durable and the present data file as a filesystem
// might: sizes change in order, pages in any.
func (m *machine) survivingData(now []byte) []byte {
	if m.rng.Intn(4) == 0 {
		return m.disk
	}
	out := append([]byte(nil), now...)
	for at := 0; at < len(out); at += page {
		end := min(at+page, len(out))
		if m.rng.Intn(2) == 0 {
			continue // written
		}
		for i := at; i < end; i++ {
			switch {
			case int64(i) >= m.cut:
				// What was cut off is gone, and what came after is not there yet.
				out[i] = 0
			case i < len(m.disk):
				out[i] = m.disk[i]
			}
		}
	}
	return out
}

// permitted checks that each byte is one the file had since it was last durable.
func (m *machine) permitted(got []byte) {
	least, most := len(m.history[0]), len(m.history[0])
	for _, h := range m.history {
		least, most = min(least, len(h)), max(most, len(h))
	}
	if len(got) < least || len(got) > most {
		m.fatalf("%d bytes after a power loss, the file had %d to %d", len(got), least, most)
	}
	for i, c := range got {
		// A zero may also be what the file grew by and was not written yet.
		ok, outside := false, false
		for _, h := range m.history {
			inside := i < len(h)
			ok = ok || inside && (h[i] == c || outside && c == 0)
			outside = outside || !inside
		}
		if !ok {
			m.fatalf("byte %d is %d after a power loss: the file never had that (limit %d)", i, c, m.o.limit)
		}
	}
}

func TestAgainstModel(t *testing.T) {
	first, runs, steps := int64(1), 40, 120
	if testing.Short() {
		runs = 10
	}
	for seed := first; seed < first+int64(runs); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			m := &machine{t: t, rng: rand.New(rand.NewSource(seed)), dir: t.TempDir(), lazy: seed%2 == 0}
			m.src = &source{content: noise(16*page+123, seed)}
			m.begin()
			for range steps {
				m.step()
			}
			kill(m.s, m.o)
			m.reopen()
			if got := m.contents(); string(got) != string(m.model) {
				m.fatalf("content differs at %d", differ(got, m.model))
			}
			m.check(m.o.Close())
			m.check(m.s.Close())
		})
	}
}
