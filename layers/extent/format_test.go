package extent

import (
	"bytes"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func noneDurable(bootID) int64 { return 0 }

func bootNamed(name string) (b bootID) {
	copy(b[:], name)
	return b
}

// mapOf returns a map file with every kind of record in it.
func mapOf(t testing.TB) []byte {
	src := sourceOf(make([]byte, 8*page))
	b, c := newHeader(&src)
	lo, hi := bootNamed(bootA).halves()
	for _, r := range []record{
		{kind: kindSession, a: lo, b: hi},
		{kind: kindEpoch, a: 1, b: 1},
		{kind: kindFetched, a: 0, b: page},
		{kind: kindWritten, a: 2 * page, b: 100},
		{kind: kindBarrier, a: 4},
		{kind: kindShrink, a: 7 * page, durable: 5},
		{kind: kindShrunk},
		{kind: kindShrink, a: 3 * page},
		{kind: kindCancel},
		{kind: kindEpoch, a: 2, b: 9},
		{kind: kindWritten, a: 5 * page, b: page, durable: 5},
		{kind: kindPiece, a: 4 * page, b: -7, n: 100},
		{kind: kindPiece, a: 4*page + 100, b: 1 << 62, n: 50},
		{kind: kindDropped, a: 4*page + 100, b: 50},
		{kind: kindCleared, a: 0, b: page},
	} {
		b = c.put(b, r)
	}
	return b
}

func TestReplay(t *testing.T) {
	b := mapOf(t)
	st, err := replay(b, bootNamed(bootA), noneDurable)
	must(t, err)
	if st.limit != 7*page || st.present.sum != 2*page+200 || st.dirty.sum != page+100 || st.redo || st.epoch != 2 ||
		st.pieces.unsure != 100 || st.cleared != 14 {
		t.Errorf("same boot: %+v", st)
	}
	st, err = replay(b, bootNamed(bootB), noneDurable)
	must(t, err)
	if st.limit != 7*page || st.present.sum != page+100 || st.dirty.sum != 100 || !st.redo || st.covered != 4 {
		t.Errorf("another boot: %+v", st)
	}
	st, err = replay(b, bootNamed(bootB), func(bootID) int64 { return 1 })
	must(t, err)
	if st.present.sum != page+100 || st.redo || st.covered != 9 {
		t.Errorf("another boot, first epoch durable: %+v", st)
	}
	st, err = replay(b, bootNamed(bootB), func(bootID) int64 { return 2 })
	must(t, err)
	if st.present.sum != 2*page+200 || st.redo || st.pieces.unsure != 0 || st.cleared != -1 {
		t.Errorf("another boot, both epochs durable: %+v", st)
	}
	if st, err = replay(b[:len(b)-5], bootNamed(bootA), noneDurable); err != nil || !st.torn || st.present.sum != 2*page+200 || st.pieces.unsure != 100 || st.cleared != -1 {
		t.Errorf("a piece of a record at the end: %+v, %v", st, err)
	}
}

// Records that a sound program never writes, with sound checksums.
func TestReplayRefuses(t *testing.T) {
	src := sourceOf(make([]byte, 8*page))
	lo, hi := bootNamed(bootA).halves()
	begin := []record{{kind: kindSession, a: lo, b: hi}, {kind: kindEpoch, a: 1, b: 1}}
	for name, recs := range map[string][]record{
		"range beyond the limit":   {{kind: kindWritten, a: 8*page - 1, b: 2}},
		"range that overflows":     {{kind: kindFetched, a: page, b: maxSize}},
		"negative offset":          {{kind: kindWritten, a: -1, b: 2}},
		"empty range":              {{kind: kindWritten, a: 1, b: 0}},
		"piece beyond the limit":   {{kind: kindPiece, a: 8*page - 1, n: 2}},
		"piece before the start":   {{kind: kindPiece, a: -1, n: 1}},
		"drop that overflows":      {{kind: kindDropped, a: page, b: maxSize}},
		"drop of nothing":          {{kind: kindDropped, a: page}},
		"clear that overflows":     {{kind: kindCleared, a: page, b: maxSize}},
		"negative clear":           {{kind: kindCleared, a: page, b: -1}},
		"shrink to more":           {{kind: kindShrink, a: 8 * page}},
		"shrink to less than none": {{kind: kindShrink, a: -1}},
		"two shrinks":              {{kind: kindShrink, a: 5}, {kind: kindShrink, a: 4}},
		"range in a shrink":        {{kind: kindShrink, a: 5}, {kind: kindWritten, a: 1, b: 1}},
		"cancel of nothing":        {{kind: kindCancel}},
		"barrier for the future":   {{kind: kindBarrier, a: 9}},
		"void future":              {{kind: kindEpoch, a: 2, b: 9}},
		"epoch zero":               {{kind: kindEpoch, a: 0, b: 0}},
		"durable future":           {{kind: kindWritten, a: 1, b: 1, durable: 9}},
	} {
		b, c := newHeader(&src)
		for _, r := range append(begin, recs...) {
			b = c.put(b, r)
		}
		for _, boot := range []string{bootA, bootB} {
			if _, err := replay(b, bootNamed(boot), noneDurable); !errors.Is(err, layers.ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	b, c := newHeader(&src)
	b = c.put(b, record{kind: kindWritten, a: 1, b: 1})
	if _, err := replay(b, bootNamed(bootA), noneDurable); !errors.Is(err, layers.ErrCorrupt) {
		t.Errorf("without a session: %v", err)
	}
}

// Every single damaged byte is noticed or makes no difference: what was synced
// is never fetched again over what was written.
func TestDamagedMap(t *testing.T) {
	src := &source{content: noise(8*page, 1)}
	dir := t.TempDir()
	s, o, id, model := prepare(t, dir, src)
	must(t, o.Sync(true))
	_, err := o.WriteAt([]byte("after"), 7*page)
	must(t, err)
	copy(model[7*page:], "after")
	must(t, o.Sync(true))
	proven := o.mapEnd - 2*recordLen // before the last record that a later one vouches for
	kill(s, o)
	path := filepath.Join(dir, id.name()+mapSuffix)
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, boot := range []string{bootA, bootB} {
		end := int64(len(whole))
		if boot == bootB {
			end = proven
		}
		for i := range end {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			must(t, os.WriteFile(path, b, 0o600))
			s := openStore(t, dir, boot)
			o, err := s.Pending(id)
			if err == nil {
				want(t, "despite damage", contentOf(t, o, unsettled{src}), model)
				must(t, o.Close())
			} else if !errors.Is(err, layers.ErrCorrupt) {
				t.Fatalf("byte %d: %v", i, err)
			}
			kill(s)
		}
	}
}

func TestDamagedObjects(t *testing.T) {
	content := noise(4*page, 1)
	src := &source{content: content}
	for name, damage := range map[string]func(base string) error{
		"no data":        func(base string) error { return os.Remove(base + dataSuffix) },
		"no map":         func(base string) error { return os.Remove(base + mapSuffix) },
		"empty map":      func(base string) error { return os.Truncate(base+mapSuffix, 0) },
		"short data":     func(base string) error { return os.Truncate(base+dataSuffix, page) },
		"map is garbage": func(base string) error { return os.WriteFile(base+mapSuffix, noise(5000, 3), 0o600) },
		"future format":  func(base string) error { return poke(base+mapSuffix, 8, 3) },
		"data is a dir": func(base string) error {
			return errors.Join(os.Remove(base+dataSuffix), os.Mkdir(base+dataSuffix, 0o700))
		},
		"data is symlink": func(base string) error {
			return errors.Join(os.Remove(base+dataSuffix), os.Symlink("/etc/passwd", base+dataSuffix))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, bootA)
			c, err := s.Cached(sourceOf(content))
			must(t, err)
			want(t, "before", contentOf(t, c, src), content)
			p, id, err := s.NewPending(sourceOf(content))
			must(t, err)
			_, err = p.WriteAt(noise(10, 9), 3*page)
			must(t, err)
			cachedName := c.name
			kill(s, c, p)
			must(t, damage(filepath.Join(dir, id.name())))
			must(t, damage(filepath.Join(dir, cachedName)))
			before := listing(t, dir, "p")

			s = openStore(t, dir, bootA)
			defer s.Close()
			if _, err := s.Pending(id); err == nil || errors.Is(err, unix.ENOENT) {
				t.Errorf("a damaged pending object: %v", err)
			}
			if got := listing(t, dir, "p"); got != before {
				t.Errorf("what was left of it was touched: %s, was %s", got, before)
			}
			c, err = s.Cached(sourceOf(content))
			if err != nil {
				if name != "data is a dir" && name != "data is symlink" {
					t.Fatal(err)
				}
				return // nobody but an attacker in our directory makes those
			}
			want(t, "cached again", contentOf(t, c, src), content)
			must(t, c.Close())
		})
	}
}

func poke(path string, off int64, c byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte{c}, off)
	return err
}

// listing returns names and sizes.
func listing(t *testing.T, dir, prefix string) (out string) {
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		if info, err := e.Info(); err == nil && e.Name()[:1] == prefix && !e.IsDir() {
			out += e.Name() + ":" + string(rune('0'+info.Size()%64)) + " "
		}
	}
	return out
}

func TestRangeSet(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	var set rangeSet
	const size = 3000 // some ten chunks when every other byte is in it
	model := make([]bool, size)
	for i := range 6000 {
		a := rng.Int63n(size)
		b := min(size, a+1+rng.Int63n(2))
		if i%500 > 480 {
			b = a + rng.Int63n(size+1-a)
		}
		v := rng.Intn(3) > 0 == (i/1000%2 == 0)
		if v {
			set.add(a, b)
		} else {
			set.remove(a, b)
		}
		for i := a; i < b; i++ {
			model[i] = v
		}
		var sum int64
		all := true
		q := rng.Int63n(size)
		for i, m := range model {
			if m {
				sum++
			}
			all = all && (m || int64(i) < q || int64(i) >= q+10)
		}
		if sum != set.sum || q+10 <= size && all != set.has(q, q+10) {
			t.Fatalf("sum %d, want %d; %v", set.sum, sum, set.chunks)
		}
		end := int64(-1)
		for v := range set.all {
			if v.from <= end || v.from >= v.to {
				t.Fatalf("touching: %v", set.chunks)
			}
			end = v.to
		}
		for _, c := range set.chunks {
			if len(c) == 0 || len(c) > chunkMax+1 {
				t.Fatalf("a chunk of %d", len(c))
			}
		}
		if i%20 != 0 {
			continue
		}
		for i, m := range model {
			if m != set.has(int64(i), int64(i)+1) {
				t.Fatalf("%d: %v", i, set.chunks)
			}
		}
		at := int64(0)
		for _, m := range append(set.missing(0, size), span{size, size}) {
			if !set.has(at, m.from) || m.from < m.to && set.has(m.from, m.to) {
				t.Fatalf("missing %v of %v", m, set.chunks)
			}
			at = m.to
		}
	}
}

// A long writer's map stays short.
func TestMapIsCompacted(t *testing.T) {
	content := noise(64*page, 1)
	_, o := newPending(t, content)
	model := bytes.Clone(content)
	for i := range 3*compactMin + 5 {
		model[i] = byte(i)
		n, err := o.WriteAt(model[i:i+1], int64(i))
		if n != 1 || err != nil {
			t.Fatal(err)
		}
		if o.chain.index > compactMin {
			t.Fatalf("%d records for one range", o.chain.index)
		}
	}
	want(t, "content", contentOf(t, o, &source{content: content}), model)
}

func FuzzReplay(f *testing.F) {
	whole := mapOf(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-10])
	f.Add(whole[:70])
	f.Add([]byte(mapMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, boot := range []string{bootA, bootB} {
			st, err := replay(b, bootNamed(boot), noneDurable)
			if err != nil {
				if !errors.Is(err, layers.ErrCorrupt) {
					t.Fatal(err)
				}
				continue
			}
			if st.limit < 0 || st.limit > st.src.Version.Size || st.end > int64(len(b)) ||
				st.present.sum > st.limit || st.dirty.sum > st.present.sum {
				t.Fatalf("%+v", st)
			}
			sound(t, st)
		}
	})
}

// sound checks how ranges lie in each other.
func sound(t *testing.T, st *state) {
	for d := range st.dirty.all {
		if !st.present.has(d.from, d.to) || d.to > st.limit {
			t.Fatalf("dirty and not present: %v", d)
		}
	}
	var end int64
	st.pieces.each(0, maxSize, func(p *piece) bool {
		if p.from < end || !st.present.has(p.from, p.to()) || st.dirty.overlaps(p.from, p.to()) || p.to() > st.limit {
			t.Fatalf("piece %+v of %+v", p, st)
		}
		end = p.to()
		return true
	})
}

// FuzzRecords gives records of any content sound checksums, to get behind them.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{1, 0, 16, 2, 8, 8, 3, 9, 0, 4, 0, 0, 6, 3, 0, 8, 2, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		src := sourceOf(make([]byte, 200))
		out, c := newHeader(&src)
		lo, hi := bootNamed(bootA).halves()
		out = c.put(out, record{kind: kindSession, a: lo, b: hi})
		out = c.put(out, record{kind: kindEpoch, a: 1, b: 1})
		for ; len(b) >= 3; b = b[3:] {
			out = c.put(out, record{kind: kind(b[0] % 14), a: int64(int8(b[1])), b: int64(int8(b[2])), n: pieceLen(b[0]%14, b[2]), durable: uint32(b[0] / 14)})
		}
		for _, boot := range []string{bootA, bootB} {
			st, err := replay(out, bootNamed(boot), noneDurable)
			if err == nil {
				sound(t, st)
			}
			if err == nil && (st.dirty.sum > st.present.sum || st.present.sum > st.limit || st.limit > 200) {
				t.Fatalf("%+v", st)
			}
		}
	})
}

func FuzzEpochs(f *testing.F) {
	f.Add(encodeEpochs([]bootEpoch{{bootNamed(bootA), 3}, {bootNamed(bootB), 1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeEpochs(b)
		if err == nil && !bytes.Equal(encodeEpochs(list), b) {
			t.Fatal("decoded what was not encoded")
		}
	})
}

func pieceLen(k, n byte) uint32 {
	if !kind(k).isPiece() {
		return 0
	}
	return uint32(n) + 1
}
