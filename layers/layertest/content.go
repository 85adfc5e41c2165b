package layertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// content: every byte of every file of sizes, odd and the deep one.
func (v *view) content(t *testing.T) {
	ctx := background(t)
	v.walk(t, func(p layers.Path, fi os.FileInfo) {
		if !fi.Mode().IsRegular() || strings.HasPrefix(string(p), "many/") && p != "many/0000" {
			return
		}
		if strings.HasPrefix(string(p), "modes/") && os.Geteuid() != 0 {
			return
		}
		want := v.read(t, p)
		got, err := whole(ctx, v.l, p)
		if err != nil {
			t.Errorf("%q: %v", p, err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%q: content differs (%d bytes, want %d)", p, len(got), len(want))
		}
	})
}

// read is the content of p by the kernel, which must be able to take its path.
func (v *view) read(t *testing.T, p layers.Path) []byte {
	t.Helper()
	b, err := os.ReadFile(v.real(p))
	must(t, err)
	return b
}

// whole reads p to its end in pieces of an awkward size.
func whole(ctx context.Context, l layers.Layer, p layers.Path) ([]byte, error) {
	f, err := l.Open(ctx, p, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []byte
	b := make([]byte, 300_007)
	for {
		n, err := f.ReadAt(ctx, b, int64(len(all)))
		all = append(all, b[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if n != len(b) {
			return nil, fmt.Errorf("%d bytes of %d without an error", n, len(b))
		}
	}
}

// endOfFile: the rules of io.ReaderAt, exactly.
func (v *view) endOfFile(t *testing.T) {
	ctx := background(t)
	for _, size := range []int64{0, 1, 4096, 128<<10 + 1} {
		p := layers.Path(fmt.Sprintf("sizes/%d", size))
		f, err := v.l.Open(ctx, p, nil)
		must(t, err)
		want := v.read(t, p)
		for _, off := range []int64{0, 1, size - 1, size, size + 1, size + 1<<40, 1<<62 - 1} {
			if off < 0 {
				continue
			}
			for _, n := range []int64{0, 1, size - off, size - off + 1, size + 5} {
				if n < 0 {
					continue
				}
				v.readOne(t, f, want, off, n)
			}
		}
		if n, err := f.ReadAt(ctx, make([]byte, 1), -1); err == nil || err == io.EOF || n != 0 {
			t.Errorf("%q at -1: %d, %v", p, n, err)
		}
		must(t, f.Close())
	}
}

// readOne checks one ReadAt of a file whose content is want.
func (v *view) readOne(t *testing.T, f layers.File, want []byte, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	got, err := f.ReadAt(background(t), b, off)
	var rest []byte
	if off < int64(len(want)) {
		rest = want[off:]
	}
	rest = rest[:min(int64(len(rest)), n)]
	wantErr := error(nil)
	if int64(len(rest)) < n {
		wantErr = io.EOF
	}
	// At the very end both are right, as io.ReaderAt says.
	okErr := err == wantErr || err == io.EOF && off+n == int64(len(want))
	if got != len(rest) || !okErr || !bytes.Equal(b[:got], rest) {
		t.Errorf("ReadAt(%d bytes, %d) of %d: %d, %v, want %d, %v", n, off, len(want), got, err, len(rest), wantErr)
	}
}

// atOnce: many goroutines on one layer and one file.
func (v *view) atOnce(t *testing.T) {
	ctx := background(t)
	big := layers.Path(fmt.Sprintf("sizes/%d", sizes[len(sizes)-1]))
	want := v.read(t, big)
	f, err := v.l.Open(ctx, big, nil)
	must(t, err)
	defer f.Close()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 20 {
				off, n := r.Int64N(int64(len(want))+10), r.Int64N(400_000)
				v.readOne(t, f, want, off, n)
				p := layers.Path(fmt.Sprintf("many/%04d", r.IntN(manyNames)))
				if a, err := v.l.Stat(ctx, p); err != nil || !a.IsRegular() {
					t.Errorf("%q: %v", p, err)
				}
				if _, err := v.l.Stat(ctx, p+"x"); !errors.Is(err, unix.ENOENT) {
					t.Errorf("%q: %v", p+"x", err)
				}
				odd := layers.Path("odd").Join(odd[r.IntN(len(odd))])
				if b, err := whole(ctx, v.l, odd); err != nil || string(b) != string(odd[len("odd/"):]) {
					t.Errorf("%q: %q, %v", odd, b, err)
				}
			}
		})
	}
	wg.Wait()
}
