package remote

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// part is a directory that nobody has looked into yet, and what it holds.
type part struct {
	dir   string
	names []string
	size  int
}

func (b *bed) parts(n, files, size int) (all []part) {
	for i := range n {
		p := part{dir: fmt.Sprintf("part%02d", i), size: size}
		for k := range files {
			p.names = append(p.names, fmt.Sprintf("f%02d", k))
			b.put(p.dir+"/"+p.names[k], size)
		}
		all = append(all, p)
	}
	return all
}

// read lists p and reads all of it.
func (b *bed) read(p part) error {
	b.t.Helper()
	if err := b.list(p.dir, p.names...); err != nil {
		return err
	}
	for _, name := range p.names {
		if err := b.right(p.dir+"/"+name, p.size); err != nil {
			return err
		}
	}
	return nil
}

// TestCutAnywhere: a link that is cut, or changes a byte, at any point of a
// listing and of reads costs time and nothing else. The points lie close to each
// other where it begins, in ssh's own exchanges and in the first replies, and
// everywhere else once.
func TestCutAnywhere(t *testing.T) {
	for name, breakIt := range map[string]func(*testbed.Proxy, int64){
		"cut":     (*testbed.Proxy).CutAfter,
		"corrupt": (*testbed.Proxy).CorruptAfter,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			points := []int64{0, 33, 1000, 5000, 70_001, 150_000, 299_999}
			parts := b.parts(len(points), 5, 80<<10)
			b.mount(",timeout=30")
			for i, p := range parts {
				breakIt(b.link, points[i])
				if err := b.read(p); err != nil {
					t.Errorf("broken after %d bytes: %v", points[i], err)
				}
			}
			b.m.Unmount()
		})
	}
}

// TestKilled: whoever of the processes between here and there dies while a file
// is read is started anew, and the read goes on.
func TestKilled(t *testing.T) {
	for name, kill := range map[string]func(*bed){
		"ssh":         func(b *bed) { signal(b.clients(), unix.SIGKILL) },
		"sftp-server": func(b *bed) { signal(b.servers(), unix.SIGKILL) },
		"sshd's":      func(b *bed) { signal(named(b.sshd.Sessions(), "sshd"), unix.SIGKILL) },
		"ssh, kindly": func(b *bed) { signal(b.clients(), unix.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			const size = 2 << 20
			b.put("one", size)
			b.put("two", size)
			b.mount(",timeout=30")
			for _, file := range []string{"one", "two"} {
				b.during(func() { kill(b) }, func() {
					if err := b.right(file, size); err != nil {
						t.Error(err)
					}
				})
			}
			b.m.Unmount()
		})
	}
}

// during runs work, and fault when bytes for it are on their way.
func (b *bed) during(fault, work func()) {
	b.t.Helper()
	b.link.StallAfter(200 << 10)
	defer b.link.Resume()
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	for !b.link.Stalled() {
		select {
		case <-done:
			b.t.Error("it was over before anything could go wrong")
			return
		case <-time.After(time.Millisecond):
		}
	}
	fault()
	b.link.Resume()
	select {
	case <-done:
	case <-time.After(hangs):
		b.m.Process().Signal(syscall.SIGQUIT)
		b.m.Process().WaitFor(5 * time.Second)
		b.t.Fatalf("it hangs\n%s", b.m.Log())
	}
}

// TestSlowLink: a link on which everything takes longer than timeout= is slow, and
// not dead, as long as bytes come.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const size = 1 << 20
	b.put("d/file", size)
	b.mount(",timeout=8")
	b.link.SetRTT(100 * time.Millisecond)
	b.link.SetRate(100 << 10)
	if err := b.list("d", "file"); err != nil {
		t.Error(err)
	}
	if err := b.right("d/file", size); err != nil {
		t.Error(err)
	}
	b.link.SetRate(0)
	b.m.Unmount()
}
