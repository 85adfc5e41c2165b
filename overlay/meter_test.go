package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func TestBuckets(t *testing.T) {
	for i := range HistogramBuckets - 1 {
		b := int64(BucketBound(i))
		if bucketOf(b) != i || bucketOf(b+1) != i+1 {
			t.Errorf("%v is counted in bucket %d, what is longer in %d; want %d and the next", BucketBound(i), bucketOf(b), bucketOf(b+1), i)
		}
	}
	if bucketOf(0) != 0 || bucketOf(-1) != 0 || bucketOf(int64(100*time.Hour)) != HistogramBuckets-1 {
		t.Error("what is beyond the bounds")
	}
	for o, name := range opNames {
		if name == "" {
			t.Errorf("request %d has no name", o)
		}
	}
}

// TestMetered: requests are counted with what came of them, who made them and which
// files they were about, and slow ones are remembered; never more than there is room for.
func TestMetered(t *testing.T) {
	fs := newFS(Config{})
	fs.root = &node{fs: fs, id: 1, typ: unix.S_IFDIR}
	fs.table.setRoot(fs.root)
	in := &fuse.InHeader{NodeId: 1}
	in.Pid = uint32(os.Getpid())
	m := &fs.meter
	request := func(a asked, took time.Duration, s fuse.Status) { m.done(fs, m.now()-int64(took), in, a, s) }

	request(asked{op: opRead, size: 100}, 0, fuse.OK)
	request(asked{op: opRead, size: 100}, 0, fuse.EIO)
	request(asked{op: opLookup, name: "f"}, time.Second, fuse.ENOENT)
	request(asked{op: opSetlkw}, time.Hour, fuse.OK)
	m.failed(fmt.Errorf("x: %w", layers.ErrOffline), unix.EIO)
	c := fs.Counts()
	read := c.Requests["read"]
	if read.Count() != 2 || c.Read != 100 || c.Errors["EIO"] != 1 || c.Errors["ENOENT"] != 1 || c.Failures["offline"] != 1 || len(c.Requests) != 3 {
		t.Errorf("%+v", c)
	}
	if len(c.Slow) != 1 || c.Slow[0].Path != "f" || c.Slow[0].Op != "lookup" || c.Slow[0].Took < time.Second || c.Slow[0].PID != in.Pid {
		t.Errorf("slow: %+v", c.Slow)
	}
	request(asked{op: opLookup, name: "f"}, time.Millisecond*60, fuse.OK)
	if c = fs.Counts(); len(c.Slow) != 1 || c.Slow[0].Times != 2 || c.Slow[0].Took < time.Second {
		t.Errorf("slow again: %+v", c.Slow)
	}
	for i := range 2 * slowMany {
		request(asked{op: opOpen, name: fmt.Sprint(i)}, time.Second+time.Duration(i)*time.Second, fuse.OK)
		request(asked{op: opOpen, name: fmt.Sprint(i)}, time.Minute+time.Duration(i)*time.Second, fuse.OK)
	}
	c = fs.Counts()
	if n := len(c.Slow); n != slowMany || c.Slow[0].Path != layers.Path(fmt.Sprint(2*slowMany-1)) || c.Slow[0].Took < time.Minute {
		t.Errorf("%d slow ones, first %+v", n, c.Slow[0])
	}

	if m.lookout.Load() != nil {
		t.Error("it is looked although nobody asks")
	}
	fs.Look()
	for i := range 3 * lookoutMost {
		request(asked{op: opWrite, name: fmt.Sprint(i), size: 1}, 0, fuse.OK)
	}
	request(asked{op: opWrite, name: "busy", size: 7}, time.Minute, fuse.OK)
	r := begin(nil, in.Pid)
	m.fetchedFor(context.WithoutCancel(r), "busy", 1000, time.Hour)
	m.fetchedFor(layers.Background(r), "busy", 5, time.Hour)
	seen := fs.Look()
	if len(seen.Files) > lookoutMost || seen.Dropped == 0 || seen.Files[0].Path != "busy" || seen.Files[0].Written != 7 || seen.Files[0].Fetched != 1000 {
		t.Errorf("%d files, %d dropped, first %+v", len(seen.Files), seen.Dropped, seen.Files[0])
	}
	if p := seen.Processes; len(p) != 1 || p[0].PID != in.Pid || p[0].Program == "?" || p[0].Requests != 3*lookoutMost+1 || p[0].Fetched != 1000 {
		t.Errorf("processes: %+v", p)
	}
	if c := fs.Counts(); c.Fetched != 1000 || c.FetchedIdle != 5 {
		t.Errorf("fetched %d and %d", c.Fetched, c.FetchedIdle)
	}
	l := m.lookout.Load()
	fs.endLook(l)
	if m.lookout.Load() != l {
		t.Error("it ended while somebody looks")
	}
	l.asked = time.Now().Add(-2 * lookoutPatience)
	fs.endLook(l)
	if m.lookout.Load() != nil {
		t.Error("it goes on although nobody asks")
	}

	var lines []string
	fs.Trace(func(kind string, about ...any) {
		lines = append(lines, fmt.Sprint(append([]any{kind}, about[:6]...)...))
	})
	request(asked{op: opRename, name: "a", to: "b"}, 0, fuse.EXDEV)
	if len(lines) != 1 || lines[0] != fmt.Sprint("rename", "path", "/a", "to", "b", "result", "EXDEV") {
		t.Errorf("%q", lines)
	}
	fs.Trace(nil)
	request(asked{op: opRename}, 0, fuse.OK)
	if len(lines) != 1 {
		t.Error("traced although nobody wants it")
	}
}

func TestFailureKinds(t *testing.T) {
	var m meter
	for _, c := range []struct {
		err  error
		kind int
	}{
		{layers.ErrDenied, failDenied}, {layers.ErrReplaced, failReplaced}, {layers.ErrCorrupt, failCorrupt}, {layers.ErrStale, failStale},
		{unix.EDQUOT, failFull}, {unix.EMFILE, failHandles}, {errors.New("x"), failOther},
	} {
		m.failed(c.err, errnoOf(c.err))
		if m.fails[c.kind].Load() != 1 {
			t.Errorf("%v is not counted as %s", c.err, failNames[c.kind])
		}
	}
}

// BenchmarkMeter is what counting adds to a request.
func BenchmarkMeter(b *testing.B) {
	fs := newFS(Config{})
	in := &fuse.InHeader{NodeId: 1}
	for b.Loop() {
		fs.meter.done(fs, fs.meter.now(), in, asked{op: opRead, size: 4096}, fuse.OK)
	}
}
