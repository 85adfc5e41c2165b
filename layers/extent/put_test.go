package extent

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What is put is kept where it is missing: over nothing that was written, zeroed
// or cut off, and nothing of it is beyond the source's end.
func TestPut(t *testing.T) {
	content := noise(4*page+100, 1)
	_, o := newPending(t, content)
	model := append([]byte(nil), content...)
	_, err := o.WriteAt([]byte("mine"), page-2)
	must(t, err)
	copy(model[page-2:], "mine")
	must(t, o.Punch(2*page, 10))
	clear(model[2*page : 2*page+10])
	must(t, o.Truncate(3*page+7))
	must(t, o.Truncate(4*page))
	clear(model[3*page+7:])
	model = model[:4*page]

	must(t, o.Put(0, content))
	want(t, "put", contentOf(t, o, nil), model)
	must(t, o.Put(5*page, content))
	if o.Size() != 4*page {
		t.Errorf("putting has made the file %d bytes long", o.Size())
	}
	for _, off := range []int64{-1, maxSize} {
		if err := o.Put(off, content); err != unix.EINVAL {
			t.Errorf("at %d: %v", off, err)
		}
	}
}

// A fetch that is under way when its bytes are put serves who waits for it, and
// changes nothing.
func TestPutDuringAFetch(t *testing.T) {
	content := noise(2*page, 1)
	_, o := newPending(t, content)
	src := &source{content: content, gate: make(chan struct{})}
	r := readInto(ctx, o, src, 2*page, 0)
	waiters(o, 1)
	must(t, o.Put(0, content))
	_, err := o.WriteAt([]byte("later"), 100)
	must(t, err)
	src.gate <- struct{}{}
	<-r
	copy(content[100:], "later")
	want(t, "afterwards", contentOf(t, o, nil), content)
}

func TestHolds(t *testing.T) {
	content := noise(page, 1)
	dir := t.TempDir()
	s := openStore(t, dir, bootA)
	defer s.Close()
	src := sourceOf(content)
	if s.Holds(src) {
		t.Error("an empty store holds it")
	}
	if names, err := s.names(); err != nil || len(names) > 0 {
		t.Errorf("asking has left %v, %v", names, err)
	}
	o, err := s.Cached(src)
	must(t, err)
	must(t, o.Put(0, content[:100]))
	if s.Holds(src) {
		t.Error("a part counts as all")
	}
	must(t, o.Put(100, content[100:]))
	must(t, o.Close())
	if !s.Holds(src) {
		t.Error("what was put is not held")
	}
	src.Version.Mtime.Sec++
	if s.Holds(src) {
		t.Error("another version is held")
	}
}
