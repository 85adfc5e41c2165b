package overlay

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// What is read of bytes that are being written is what was written, also if the file
// comes up for that; what is read beside them waits for nothing, and a reader that is
// killed waits no longer.
func TestReadMeetsWrite(t *testing.T) {
	for _, mode := range []stacking{stackings[0], stackings[2]} {
		t.Run(mode.name, func(t *testing.T) {
			w := newWorld(t, worlds(t), mode)
			must(t, w.open())
			defer w.remove()
			d := &driver{fs: w.fs}
			defer d.end()
			reads, _ := d.openFile(t, "low", unix.O_RDONLY)
			fh, _ := d.openFile(t, "low", unix.O_RDWR)

			s := newStepper(1)
			sys.SetHook(s.hook)
			defer sys.SetHook(nil)
			wrote := make(chan fuse.Status, 1)
			go func() {
				s.mu.Lock()
				s.who = goid()
				s.mu.Unlock()
				_, st := d.fs.Write(nil, &fuse.WriteIn{Fh: fh, Offset: 2, Size: 2}, []byte("WR"))
				wrote <- st
			}()
			<-s.stopped

			read := func(off, size int, cancel <-chan struct{}) (string, fuse.Status) {
				buf := make([]byte, size)
				in := &fuse.ReadIn{Fh: reads, Offset: uint64(off), Size: uint32(size)}
				in.Pid = 1 << 30 // no process has it any more
				res, st := d.fs.Read(cancel, in, buf)
				if st != 0 {
					return "", st
				}
				defer res.Done()
				b, st := res.Bytes(buf)
				return string(b), st
			}
			for _, r := range []struct{ off, size int }{{0, 2}, {4, 3}} {
				if got, st := read(r.off, r.size, nil); st != 0 || got != "lower low"[r.off:r.off+r.size] {
					t.Errorf("beside it: %q, %v", got, st)
				}
			}
			dead := make(chan struct{})
			close(dead)
			if _, st := read(0, 9, dead); st != fuse.EINTR {
				t.Errorf("a reader that was killed: %v", st)
			}
			got := make(chan string, 2)
			for _, size := range []int{3, 9} {
				go func() {
					b, st := read(0, size, nil)
					if st != 0 {
						b = st.String()
					}
					got <- b
				}()
			}
			select {
			case b := <-got:
				close(s.resume)
				t.Fatalf("read %q while the write was under way", b)
			case <-time.After(50 * time.Millisecond):
			}
			close(s.resume)
			if st := <-wrote; st != 0 {
				t.Fatal(st)
			}
			for range 2 {
				if b := <-got; b != "loW" && b != "loWRr low" {
					t.Errorf("read %q after the write", b)
				}
			}
			if n := d.fs.writes.n.Load(); n != 0 || len(d.fs.writes.of) != 0 {
				t.Errorf("%d writes are left", n)
			}
		})
	}
}
