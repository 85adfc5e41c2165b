package overlay

import (
	"bytes"
	"testing"
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
		{"d/file", 4 << 20, 3 << 19}, {"d/none", 0, 100}, {"d", 0, 100}, {"d/other", 50, 1 << 20}, {"d/other", 500, 1}, {"d/file", -5, 10}, {"d/file", 0, 0},
	}, true)
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
	w.fs.Foretell([]Foretold{{"file", 0, 1 << 20}}, false)
	w.fs.ahead.work.Wait()
	if far.given != 0 {
		t.Errorf("%d bytes were fetched", far.given)
	}
}
