package overlay

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/layers"
)

// What is foretold is here when it is read, and nothing besides; what is no file of a
// source, or beyond its end, is nobody's business.
func TestForetell(t *testing.T) {
	far := &faraway{}
	want := noise(8<<20, 11)
	far.put("d/file", want)
	far.put("d/other", want[:100])
	w := newAheadWorld(t, far)
	w.fs.Foretell([]Foretold{
		{Path: "d/file", Off: 4 << 20, Len: 3 << 19, When: Soon}, {Path: "d/none", Len: 100}, {Path: "d", Len: 100, When: Later},
		{Path: "d/other", Off: 50, Len: 1 << 20}, {Path: "d/other", Off: 500, Len: 1}, {Path: "d/file", Off: -5, Len: 10}, {Path: "d/none"}, {Path: "d"},
	})
	until(t, "it is fetched", func() (ok bool) {
		far.count(func() { ok = far.given >= 3<<19+50 && far.under == 0 })
		return ok
	})
	if far.given > 3<<19+100 {
		t.Errorf("%d bytes were fetched", far.given)
	}
	reads, given := far.reads, far.given
	fh := w.openFile("d/file")
	for off := 4 << 20; off < 4<<20+3<<19; off += kernelReads {
		if got := w.readAt(fh, off, kernelReads); !bytes.Equal(got, want[off:off+kernelReads]) {
			t.Fatalf("at %d: other bytes", off)
		}
		if off == 4<<20 && (far.reads != reads || far.given != given) {
			t.Errorf("what was fetched is fetched again")
		}
	}
	w.release(fh)
}

// With prefetch=off nothing is.
func TestForetellOff(t *testing.T) {
	far := &faraway{}
	far.put("file", noise(1<<20, 12))
	w := newAheadWorld(t, far, func(c *Config) { c.NoPrefetch = true })
	w.fs.Foretell([]Foretold{{Path: "file", Len: 1 << 20}})
	w.fs.ahead.work.Wait()
	if far.given != 0 {
		t.Errorf("%d bytes were fetched", far.given)
	}
}

// What was opened for somebody costs nobody an exchange, and is let go of with the mount;
// another version of it is not what was opened.
func TestForetellOpens(t *testing.T) {
	far := &faraway{}
	want := noise(1<<20, 13)
	for _, name := range []layers.Path{"a", "b", "c"} {
		far.put(name, want)
	}
	w := newAheadWorld(t, far)
	w.fs.Foretell([]Foretold{{Path: "a"}, {Path: "b"}, {Path: "c"}, {Path: "a", Len: 100}})
	until(t, "it is open", func() (ok bool) {
		far.count(func() { ok = far.opens >= 3 && far.given >= 100 })
		return ok
	})
	fh := w.openFile("a")
	if got := w.readAt(fh, 1<<19, kernelReads); !bytes.Equal(got, want[1<<19:1<<19+kernelReads]) {
		t.Error("other bytes")
	}
	if far.opens != 3 {
		t.Errorf("%d files were opened, want those that were foretold", far.opens)
	}
	// Who goes on to fetch of it has the same, as long as it is open.
	w.fs.Foretell([]Foretold{{Path: "a", Off: 1 << 18, Len: 100, When: Soon}})
	until(t, "more of it is fetched", func() (ok bool) {
		far.count(func() { ok = far.ahead > 0 })
		return ok
	})
	if far.opens != 3 {
		t.Errorf("%d files were opened, want those that were foretold", far.opens)
	}
	w.release(fh)
	fh = w.openFile("a") // which nobody holds any more
	if got := w.readAt(fh, 3<<18, kernelReads); !bytes.Equal(got, want[3<<18:3<<18+kernelReads]) {
		t.Error("other bytes")
	}
	w.release(fh)

	anew := noise(1<<20, 14)
	far.put("b", anew)
	far.count(func() { far.files["b"].mtime++ })
	fh = w.openFile("b")
	if got := w.readAt(fh, 0, kernelReads); !bytes.Equal(got, anew[:kernelReads]) {
		t.Error("the bytes of what was there before")
	}
	w.release(fh)
}

// What comes when somebody reads does not come before; with the first read of one of the
// files it comes of all, once.
func TestForetellOnRead(t *testing.T) {
	far := &faraway{}
	want := noise(1<<20, 17)
	for _, name := range []layers.Path{"a", "b", "c", "other"} {
		far.put(name, want)
	}
	w := newAheadWorld(t, far)
	w.fs.ForetellOnRead([]Foretold{{Path: "a", Off: 1 << 19, Len: 4096}, {Path: "b", Off: 1 << 19, Len: 4096}, {Path: "c", Off: 1 << 19, Len: 4096}})
	read := func(name string, off int) {
		t.Helper()
		fh := w.openFile(name)
		defer w.release(fh)
		if got := w.readAt(fh, off, 4096); !bytes.Equal(got, want[off:off+4096]) {
			t.Errorf("%s at %d: other bytes", name, off)
		}
	}
	read("other", 0)
	w.fs.ahead.work.Wait()
	far.count(func() {
		if far.given != 4096 {
			t.Errorf("%d bytes were fetched before anybody read", far.given)
		}
	})
	read("b", 1<<19)
	until(t, "the rest comes", func() (ok bool) {
		far.count(func() { ok = far.given >= 4*4096 && far.under == 0 })
		return ok
	})
	given := far.given
	read("a", 1<<19)
	read("c", 1<<19)
	if far.given != given {
		t.Errorf("what was fetched is fetched again: %d bytes, then %d", given, far.given)
	}
	if w.fs.ahead.next.Load() != nil {
		t.Error("it would be asked for once more")
	}
}

// Beside a file that nobody has opened yet some small ones come.
func TestForetellBeside(t *testing.T) {
	far := &faraway{}
	far.put("d/big", noise(1<<20, 15))
	for i := range 3 * siblingsFirst {
		far.put(layers.Path(fmt.Sprintf("d/f%02d", i)), noise(100, byte(i)))
	}
	far.put("other/file", noise(100, 16))
	w := newAheadWorld(t, far)
	w.fs.Foretell([]Foretold{{Path: "d/big", Beside: true, When: Later}})
	until(t, "they have come", func() (ok bool) {
		far.count(func() { ok = len(far.brings) >= siblingsFirst })
		return ok
	})
	for _, p := range far.brings {
		if !strings.HasPrefix(string(p), "d/f") {
			t.Errorf("%q was fetched", p)
		}
	}
	if n := len(far.brings); n != siblingsFirst {
		t.Errorf("%d files were fetched, want %d", n, siblingsFirst)
	}
	bulk, opens := far.bulk, far.opens
	_, name := far.brings[0].Split()
	fh := w.openFile("d/" + name)
	if got := w.readAt(fh, 0, 100); !bytes.Equal(got, far.files[far.brings[0]].content) {
		t.Error("other bytes")
	}
	if far.bulk != bulk || far.opens != opens {
		t.Error("the source is asked for what has come")
	}
	w.release(fh)
}
