package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestSmallFilesComeTogether: with a small file come some of those beside it, which can
// then be opened and read while the source does not answer.
func TestSmallFilesComeTogether(t *testing.T) {
	s := newSource(t)
	must(t, os.Mkdir(filepath.Join(s.dir, "d"), 0o755))
	want := map[string][]byte{}
	for i := range 100 {
		name := fmt.Sprintf("d/f%03d", i)
		want[name] = s.put(t, name, 100+77*i)
	}
	m := s.mount(t, ",entry_timeout=600,attr_timeout=600")
	names, err := os.ReadDir(m.Path("d"))
	if err != nil || len(names) != len(want) {
		t.Fatalf("%d names, %v", len(names), err)
	}
	s.sshd.ForgetRequests()
	first := "d/" + names[0].Name()
	if got, err := os.ReadFile(m.Path(first)); err != nil || !bytes.Equal(got, want[first]) {
		t.Fatalf("%s: %d bytes, %v", first, len(got), err)
	}
	opened := s.sshd.Opened()
	if len(opened) < 8 || len(opened) > 40 {
		t.Errorf("with one file %d were read", len(opened))
	}
	s.link.Stall()
	defer s.link.Resume()
	inTime(t, "a small file beside one that was read", func() {
		for _, path := range opened {
			name, err := filepath.Rel(s.dir, path)
			must(t, err)
			if got, err := os.ReadFile(m.Path(name)); err != nil || !bytes.Equal(got, want[name]) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
	})
	s.link.Resume()
	m.Unmount()
}

// TestRandomReads: who does not read in order is not sent much more than he asks for,
// what the kernel reads ahead included.
func TestRandomReads(t *testing.T) {
	const size, page = 32 << 20, 4096
	random := rand.New(rand.NewPCG(3, 4))
	s := newSource(t)
	at := map[string]func(i int) int64{
		"random":   func(int) int64 { return random.Int64N(size/page) * page },
		"strided":  func(i int) int64 { return int64(i) * 5 * page },
		"backward": func(i int) int64 { return int64(size - (i+1)*page) },
	}
	want := map[string][]byte{}
	for name := range at {
		want[name] = s.put(t, name, size)
	}
	m := s.mount(t, "")
	for name, at := range at {
		f, err := os.Open(m.Path(name))
		must(t, err)
		const reads = 100
		b := make([]byte, page)
		for i := range reads {
			off := at(i)
			if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, want[name][off:off+page]) {
				t.Fatalf("%s: at %d: %v", name, off, err)
			}
		}
		f.Close()
		if n := s.sshd.BytesRead()[filepath.Join(s.dir, name)]; n > 4*reads*page {
			t.Errorf("%s: %d bytes were fetched for %d", name, n, reads*page)
		}
	}
	m.Unmount()
}

// TestReadingInOrder: what follows is fetched while somebody reads in order, nothing of it
// twice; with prefetch=off nothing is but by the kernel.
func TestReadingInOrder(t *testing.T) {
	const size, part = 16 << 20, 2 << 20
	for _, option := range []string{",prefetch=on", ",prefetch=off"} {
		s := newSource(t)
		want := s.put(t, "file", size)
		path := filepath.Join(s.dir, "file")
		m := s.mount(t, option)
		f, err := os.Open(m.Path("file"))
		must(t, err)
		b := make([]byte, size)
		for off := 0; off < part; off += 64 << 10 {
			_, err := f.ReadAt(b[off:off+64<<10], int64(off))
			must(t, err)
		}
		if option == ",prefetch=on" {
			testbed.Until(t, "what follows is fetched", func() bool { return s.sshd.BytesRead()[path] > part+part/4 })
		} else if n := s.sshd.BytesRead()[path]; n > part+512<<10 {
			t.Errorf("%s: %d bytes were fetched for %d", option, n, part)
		}
		_, err = f.ReadAt(b[part:], part)
		must(t, err)
		if !bytes.Equal(b, want) {
			t.Errorf("%s: other bytes", option)
		}
		f.Close()
		if n := s.sshd.BytesRead()[path]; n > size+size/16 {
			t.Errorf("%s: %d bytes were fetched of %d", option, n, size)
		}
		m.Unmount()
	}
}
