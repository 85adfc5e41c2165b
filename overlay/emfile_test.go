package overlay

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestFewDescriptors runs each operation with every number of free descriptors
// that is too small for it: opens that fail change nothing, so no fault injected
// into changes meets them.
func TestFewDescriptors(t *testing.T) {
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = 200
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	each(t, func(t *testing.T, base string, k stacking, o *operation) {
		// These change something and then have to look at it, with descriptors.
		late := "link of a pending file, chmod of a directory"
		if k.lowers > 1 || strings.Contains(late, o.name) && (k.remote || k.mode == Migrate) {
			return
		}
		before, after, refused := o.expect(t, base, k)
		for free := 0; ; free++ {
			if o.runWith(t, base, k, free, before, after) {
				return
			}
			if free > 50 || refused && free > 20 {
				t.Fatal("no number is enough")
			}
		}
	})
}

// runWith runs the operation with so many free descriptors, and again with
// enough. It reports whether they were enough.
func (o *operation) runWith(t *testing.T, base string, k stacking, free int, before, after sight) (enough bool) {
	t.Helper()
	w := o.start(t, base, k)
	defer w.remove()
	lowers, held := w.lowers(), descriptors(t)
	w.fs.dirs.closeAll()
	release := exhaust(t, free)
	errno := o.run(w)
	release()
	where := fmt.Sprintf("%d free descriptors", free)
	switch errno {
	case 0, unix.EXDEV:
		w.judge(where, 0, after, after)
	case unix.EMFILE:
		done := before
		if o.torn != nil && o.torn(k) {
			done = after
		}
		w.judge(where, errno, before, done)
		if again := o.run(w); again != 0 && again != unix.EXDEV {
			t.Errorf("%s, and again with enough: %v", where, again)
		}
		w.judge(where+", and again with enough", 0, after, after)
	default:
		t.Errorf("%s: came out as %v", where, errno)
	}
	w.noMoreDescriptors(where, held)
	w.lowersUnchanged(where, lowers)
	w.close()
	must(t, w.open())
	w.judge(where+", remounted", 0, after, after)
	if left := w.leftovers(); left != "" {
		t.Errorf("%s, left over:\n\t%s", where, left)
	}
	return errno == 0 || errno == unix.EXDEV
}

// exhaust takes all descriptors but so many.
func exhaust(t *testing.T, free int) (release func()) {
	t.Helper()
	var taken []int
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	if len(taken) < free {
		t.Fatalf("only %d descriptors", len(taken))
	}
	for _, fd := range taken[:free] {
		unix.Close(fd)
	}
	return func() {
		for _, fd := range taken[free:] {
			unix.Close(fd)
		}
	}
}

// TestHandleWithoutCopy: a handle that could not get a descriptor of the copy when
// the file came up gets one later, and never looks at what lies below.
func TestHandleWithoutCopy(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[0])
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	fh, errno := d.keep("low")
	if errno == 0 {
		errno = d.write("low", "far", 1<<20)
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	without := func() {
		h := d.fs.handle(fh)
		unix.Close(h.fd)
		h.fd = -1
	}
	without()
	var out fuse.LseekOut
	st := d.fs.Lseek(nil, &fuse.LseekIn{Fh: fh, Offset: 1 << 16, Whence: unix.SEEK_DATA}, &out)
	if st != fuse.OK || out.Offset == 0 || out.Offset > 1<<20 {
		t.Errorf("data at %d (%v), of a file that has some at 1 MiB", out.Offset, st)
	}
	without()
	if errno := d.create("copy", ""); errno != 0 {
		t.Fatal(errno)
	}
	errno = d.on("copy", func(h fuse.InHeader) fuse.Status {
		var to fuse.OpenOut
		if st := d.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: unix.O_RDWR}, &to); st != 0 {
			return st
		}
		d.open = append(d.open, to.Fh)
		_, st := d.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, FhIn: fh, OffIn: 1 << 20, FhOut: to.Fh, Len: 3})
		return st
	})
	if got := string(d.content(t, "copy")); errno != 0 || got != "far" {
		t.Errorf("copied %q (%v)", got, errno)
	}
}
