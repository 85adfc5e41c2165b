package extent

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// speaking opens the store in dir with a log that is returned.
func speaking(t *testing.T, dir string) (*Store, *bytes.Buffer) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	out := new(bytes.Buffer)
	s, err := OpenStore(fd, Config{Logger: slog.New(slog.NewTextHandler(out, nil)), BootID: bootA, SyncEvery: -1})
	must(t, err)
	return s, out
}

// What is damaged on disk is fetched again, and only that; it is said once.
func TestDamageIsFetchedAgain(t *testing.T) {
	content := noise(5*chunkLeast+100, 1)
	for _, boot := range []string{bootA, bootB} {
		dir := t.TempDir()
		src := &source{content: content}
		s := openStore(t, dir, boot)
		o, err := s.Cached(sourceOf(content))
		must(t, err)
		want(t, "before", contentOf(t, o, src), content)
		name := o.name
		must(t, o.Close())
		must(t, s.Close())
		path := filepath.Join(dir, name+dataSuffix)
		must(t, poke(path, chunkLeast+7, 0))
		must(t, poke(path, 5*chunkLeast+99, 0))

		src.bytes.Store(0)
		s, out := speaking(t, dir)
		o, err = s.Cached(sourceOf(content))
		must(t, err)
		if o.Missing() != 0 || o.Whole() {
			t.Errorf("before a look at it: %d missing, whole: %v", o.Missing(), o.Whole())
		}
		want(t, "damaged", contentOf(t, o, src), content)
		if n := src.bytes.Load(); n != chunkLeast+100 {
			t.Errorf("%d bytes were fetched, want the two pieces", n)
		}
		if n := strings.Count(out.String(), "damaged"); n != 1 {
			t.Errorf("said %d times: %s", n, out)
		}
		must(t, o.Close())
		must(t, s.Close())
		// It is good for the next.
		s = openStore(t, dir, bootA)
		o, err = s.Cached(sourceOf(content))
		must(t, err)
		want(t, "mended", contentOf(t, o, nil), content)
		must(t, o.Close())
		must(t, s.Close())
	}
}

// What is proved is not proved again before the store is opened anew; what was
// fetched since need not be.
func TestProofIsOncePerStore(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(3*chunkLeast, 1)}
	open := func(s *Store) *Object {
		o, err := s.Cached(sourceOf(src.content))
		must(t, err)
		return o
	}
	s := openStore(t, dir, bootA)
	o := open(s)
	must(t, o.Fill(ctx, src, 0, 3*chunkLeast))
	must(t, o.Close())
	if o = open(s); !o.Whole() {
		t.Error("what was fetched by this store is doubted")
	}
	must(t, o.Close())
	must(t, s.Close())
	s = openStore(t, dir, bootA)
	defer s.Close()
	if o = open(s); o.Whole() {
		t.Error("what another has fetched is not doubted")
	}
	must(t, o.Fill(ctx, nil, 0, chunkLeast))
	must(t, o.Close())
	if o = open(s); o.Whole() {
		t.Error("half a proof counts")
	}
	must(t, o.Fill(ctx, nil, 0, 3*chunkLeast))
	must(t, o.Close())
	o = open(s)
	defer o.Close()
	if !o.Whole() {
		t.Error("it is doubted again")
	}
}

// Whatever rots, what was written here stays.
func TestDamageSparesWhatWasWritten(t *testing.T) {
	content := noise(4*chunkLeast, 1)
	src := &source{content: content}
	for seed := range int64(10) {
		rng := rand.New(rand.NewSource(seed))
		dir := t.TempDir()
		s := openStore(t, dir, bootA)
		o, id, err := s.NewPending(sourceOf(content))
		must(t, err)
		must(t, o.Fill(ctx, src, 0, 3*chunkLeast))
		mine := map[int64]byte{}
		for range 1 + rng.Intn(6) {
			b, off := noise(1+rng.Intn(3000), rng.Int63()), rng.Int63n(4*chunkLeast-3000)
			_, err := o.WriteAt(b, off)
			must(t, err)
			for i, c := range b {
				mine[off+int64(i)] = c
			}
		}
		if rng.Intn(2) == 0 {
			must(t, o.Sync(true))
		}
		kill(s, o)
		rotten := map[int64]bool{}
		data, err := os.ReadFile(filepath.Join(dir, id.DataName()))
		must(t, err)
		for range 1000 {
			at := rng.Int63n(4 * chunkLeast)
			if _, ok := mine[at]; !ok {
				rotten[at], data[at] = true, 0
			}
		}
		must(t, os.WriteFile(filepath.Join(dir, id.DataName()), data, 0o600))
		s = openStore(t, dir, bootA)
		o, err = s.Pending(id)
		must(t, err)
		got := contentOf(t, o, src)
		for i, c := range got {
			w, written := mine[int64(i)]
			if written && c != w {
				t.Fatalf("seed %d: byte %d that was written is %d, want %d", seed, i, c, w)
			}
			sealed := o.pieces.any(int64(i), int64(i)+1)
			if !written && sealed && c != content[i] {
				t.Fatalf("seed %d: byte %d is %d, want %d; rotten: %v", seed, i, c, content[i], rotten[int64(i)])
			}
		}
		must(t, o.Close())
		must(t, s.Close())
	}
}

// A write into what was fetched is on its way to the disk when the power goes, and
// the map that speaks of it is not: what is around it was here, and stays, although
// no sum is right any more, also where there is no source.
func TestPowerLossInAWriteIntoAPiece(t *testing.T) {
	content := noise(2*chunkLeast, 1)
	dir := t.TempDir()
	s := openStore(t, dir, bootA)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	must(t, o.Fill(ctx, &source{content: content}, 0, 2*chunkLeast))
	must(t, o.Sync(false))
	onDisk := o.mapEnd
	_, err = o.WriteAt([]byte("new"), 100)
	must(t, err)
	onDisk = max(onDisk, o.mapEnd-int64(o.chain.index-o.durable)*recordLen)
	kill(s, o)
	must(t, os.Truncate(filepath.Join(dir, id.name()+mapSuffix), onDisk))
	s = openStore(t, dir, bootB)
	defer s.Close()
	o, err = s.Pending(id)
	must(t, err)
	defer o.Close()
	model := bytes.Clone(content)
	copy(model[100:], "new")
	want(t, "without a source", contentOf(t, o, nil), model)
}

// asVersion1 makes the map b one of the program that knew no pieces.
func asVersion1(b []byte, recs []record) []byte {
	n := binary.LittleEndian.Uint32(b[12:])
	out := bytes.Clone(b[:n])
	binary.LittleEndian.PutUint32(out[8:], 1)
	sum := crc32.Checksum(out[:n-4], castagnoli)
	binary.LittleEndian.PutUint32(out[n-4:], sum)
	c := chain{salt: binary.LittleEndian.Uint32(out[20:]), prev: sum}
	for _, r := range recs {
		out = c.put(out, r)
	}
	return out
}

// Maps of the version before: a pending object is somebody's only copy, and goes on
// in its format until it is compacted; a cached one is thrown away.
func TestMapsWithoutSums(t *testing.T) {
	dir := t.TempDir()
	content := noise(8*page, 1)
	src := &source{content: content}
	s := openStore(t, dir, bootA)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	c, err := s.Cached(sourceOf(content))
	must(t, err)
	want(t, "cached", contentOf(t, c, src), content)
	must(t, o.Fill(ctx, src, 0, page))
	_, err = o.WriteAt([]byte("mine"), 2*page)
	must(t, err)
	cached := c.name
	kill(s, o, c)
	lo, hi := bootNamed(bootA).halves()
	for _, name := range []string{cached, id.name()} {
		path := filepath.Join(dir, name+mapSuffix)
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, asVersion1(b, []record{
			{kind: kindSession, a: lo, b: hi}, {kind: kindEpoch, a: 1, b: 1},
			{kind: kindFetched, a: 0, b: page}, {kind: kindWritten, a: 2 * page, b: 4},
		}), 0o600))
	}
	model := bytes.Clone(content)
	copy(model[2*page:], "mine")

	s = openStore(t, dir, bootA)
	o, err = s.Pending(id)
	must(t, err)
	if o.Missing() != 7*page-4 {
		t.Errorf("%d missing", o.Missing())
	}
	want(t, "pending", contentOf(t, o, src), model)
	_, err = o.WriteAt([]byte("more"), 10)
	must(t, err)
	copy(model[10:], "more")
	kill(s, o)
	if b, err := os.ReadFile(filepath.Join(dir, id.name()+mapSuffix)); err != nil || b[8] != 1 {
		t.Errorf("the map is of version %d, %v", b[8], err)
	}
	s = openStore(t, dir, bootA)
	o, err = s.Pending(id)
	must(t, err)
	want(t, "pending, again", contentOf(t, o, nil), model)
	o.syncMu.Lock()
	o.wmu.Lock()
	err = o.compact()
	o.wmu.Unlock()
	o.syncMu.Unlock()
	must(t, err)
	kill(s, o)
	s = openStore(t, dir, bootB)
	o, err = s.Pending(id)
	must(t, err)
	if !o.sums {
		t.Error("compacted, and still of the version before")
	}
	want(t, "compacted", contentOf(t, o, nil), model)
	must(t, o.Close())
	must(t, s.Close())

	s, out := speaking(t, dir)
	defer s.Close()
	c, err = s.Cached(sourceOf(content))
	must(t, err)
	defer c.Close()
	if c.Missing() != 8*page || !strings.Contains(out.String(), "without checksums") {
		t.Errorf("%d missing: %s", c.Missing(), out)
	}
}

func TestPieceSet(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	var set pieceSet
	const unit, units = 64 << 10, 400 // 25 MiB: seven groups
	model := make([]int, units)       // 0, or 1 + where its piece begins
	for range 4000 {
		a := rng.Intn(units)
		if rng.Intn(3) > 0 {
			n := 1 + rng.Intn(2)
			if a%2 == 1 {
				n = 1
			}
			if a+n > units || set.any(int64(a)*unit, int64(a+n)*unit) {
				continue
			}
			set.put(piece{from: int64(a) * unit, n: uint32(n) * unit, doubted: rng.Intn(2) == 0})
			for i := a; i < a+n; i++ {
				model[i] = a + 1
			}
		} else {
			b := min(units, a+1+rng.Intn(3))
			if rng.Intn(40) == 0 {
				b = units
			}
			gone := map[int]bool{}
			for i := a; i < b; i++ {
				gone[model[i]] = true
			}
			delete(gone, 0)
			set.remove(int64(a)*unit, int64(b)*unit)
			for i := range model {
				if gone[model[i]] {
					model[i] = 0
				}
			}
		}
		if p := set.doubtful(0, maxSize); p != nil && rng.Intn(4) == 0 {
			set.trust(p)
		}
		var doubts int
		var unsure, at int64
		got := make([]int, units)
		set.each(0, maxSize, func(p *piece) bool {
			if p.from < at {
				t.Fatalf("%+v out of order", p)
			}
			for i := p.from / unit; i < p.to()/unit; i++ {
				got[i] = int(p.from/unit) + 1
			}
			if at = p.to(); p.doubted {
				doubts, unsure = doubts+1, unsure+int64(p.n)
			}
			return true
		})
		for i := range model {
			if got[i] != model[i] || set.any(int64(i)*unit, int64(i+1)*unit) != (model[i] != 0) {
				t.Fatalf("unit %d is in %d, want %d", i, got[i], model[i])
			}
		}
		if doubts != set.doubts || unsure != set.unsure {
			t.Fatalf("%d doubts of %d bytes, want %d of %d", set.doubts, set.unsure, doubts, unsure)
		}
	}
}

// BenchmarkSums shows what checksums cost: Sum when data is kept, Proof when it is
// first read after a restart, Read when it is read again.
func BenchmarkSums(b *testing.B) {
	const size = 64 << 20
	content := noise(size, 1)
	b.Run("Sum", func(b *testing.B) {
		b.SetBytes(chunkLeast)
		for i := range b.N {
			off := i % (size / chunkLeast) * chunkLeast
			sumOf(content[off : off+chunkLeast])
		}
	})
	dir := b.TempDir()
	src := &source{content: content}
	b.Run("Keep", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			s := openStore(b, b.TempDir(), bootA)
			o, err := s.Cached(sourceOf(content))
			must(b, err)
			must(b, o.Fill(ctx, src, 0, size))
			kill(s, o)
		}
	})
	s := openStore(b, dir, bootA)
	o, err := s.Cached(sourceOf(content))
	must(b, err)
	must(b, o.Fill(ctx, src, 0, size))
	must(b, o.Close())
	must(b, s.Close())
	buf := make([]byte, 128<<10)
	read := func(o *Object) {
		for off := int64(0); off < size; off += int64(len(buf)) {
			if _, err := o.ReadAt(ctx, nil, buf, off); err != nil && err != io.EOF {
				b.Fatal(err)
			}
		}
	}
	b.Run("Proof", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			s := openStore(b, dir, bootA)
			o, err := s.Cached(sourceOf(content))
			must(b, err)
			read(o)
			kill(s, o)
		}
	})
	b.Run("Read", func(b *testing.B) {
		b.SetBytes(size)
		s := openStore(b, dir, bootA)
		o, err := s.Cached(sourceOf(content))
		must(b, err)
		read(o)
		b.ResetTimer()
		for range b.N {
			read(o)
		}
		kill(s, o)
	})
}
