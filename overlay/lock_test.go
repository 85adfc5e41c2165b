package overlay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// TestSpans compares what an owner holds with a byte-by-byte account.
func TestSpans(t *testing.T) {
	const size = 40
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s spans
		var bytes [size]lockKind
		for range 50 {
			a, b := rnd.Uint64N(size), rnd.Uint64N(size)
			set := span{min(a, b), max(a, b), lockKind(rnd.Uint32N(3))}
			before := s.within(&set)
			old := s
			s = s.with(set)
			for i := set.start; i <= set.end; i++ {
				bytes[i] = set.kind
			}
			back := s
			for _, p := range before {
				back = back.with(p)
			}
			if fmt.Sprint(back) != fmt.Sprint(old) {
				t.Fatalf("%v, then %v, then %v back: %v", old, set, before, back)
			}
		}
		var account spans
		for i, k := range bytes {
			at := uint64(i)
			if last := len(account) - 1; last >= 0 && account[last].end+1 == at && account[last].kind == k {
				account[last].end = at
			} else if k != unlocked {
				account = append(account, span{at, at, k})
			}
		}
		if fmt.Sprint(s) != fmt.Sprint(account) {
			t.Fatalf("held: %v, want %v", s, account)
		}
		for i := range uint64(size) {
			for _, k := range []lockKind{shared, exclusive} {
				if got := s.conflict(&span{i, i, k}) != nil; got != bytes[i].conflicts(k) {
					t.Fatalf("byte %d, held %d, wanted %d: conflict %v", i, bytes[i], k, got)
				}
			}
		}
	}
}

// locker is an owner of locks, by one open file.
type locker struct {
	t     *testing.T
	d     *driver
	n     uint64
	fh    uint64
	owner uint64
	flock bool
}

var lockOwners uint64

// locker opens a file of the world through fs as somebody new.
func (w *world) locker(t *testing.T, fs *FS, path string, flags uint32, flock bool) *locker {
	t.Helper()
	lockOwners++
	l := &locker{t: t, d: &driver{fs: fs}, owner: lockOwners, flock: flock}
	var errno unix.Errno
	if l.n, errno = l.d.find(path); errno != 0 {
		t.Fatalf("%s: %v", path, errno)
	}
	l.open(flags)
	return l
}

func (l *locker) open(flags uint32) {
	l.t.Helper()
	var out fuse.OpenOut
	if st := l.d.fs.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: l.n}, Flags: flags}, &out); st != 0 {
		l.t.Fatal(st)
	}
	l.fh = out.Fh
	l.d.open = append(l.d.open, out.Fh)
}

func (l *locker) in(typ uint32, start, end uint64) *fuse.LkIn {
	in := &fuse.LkIn{InHeader: fuse.InHeader{NodeId: l.n}, Fh: l.fh, Owner: l.owner}
	in.Lk = fuse.FileLock{Start: start, End: end, Typ: typ, Pid: uint32(1000 + l.owner)}
	if l.flock {
		in.LkFlags = fuse.LK_FLOCK
	}
	return in
}

const eof = 1<<63 - 1

func (l *locker) try(typ uint32) unix.Errno { return l.tryRange(typ, 0, eof) }

func (l *locker) tryRange(typ uint32, start, end uint64) unix.Errno {
	return unix.Errno(l.d.fs.SetLk(nil, l.in(typ, start, end)))
}

// wait starts to wait for a lock.
func (l *locker) wait(typ uint32, cancel <-chan struct{}) <-chan unix.Errno {
	done := make(chan unix.Errno, 1)
	go func() { done <- unix.Errno(l.d.fs.SetLkw(cancel, l.in(typ, 0, eof))) }()
	return done
}

func (l *locker) flush() {
	l.d.fs.Flush(nil, &fuse.FlushIn{Fh: l.fh, LockOwner: l.owner})
}

func (l *locker) want(what string, got, want unix.Errno) {
	l.t.Helper()
	if got != want {
		l.t.Errorf("%s: %q, want %q", what, errnoName(got), errnoName(want))
	}
}

func errnoName(e unix.Errno) string {
	if e == 0 {
		return "OK"
	}
	return unix.ErrnoName(e)
}

// outside opens a file in a layer as a program would that knows nothing of us.
func (w *world) outside(t *testing.T, path string) (tryLock func(flock bool, kind lockKind) unix.Errno) {
	t.Helper()
	fd, err := unix.Open(w.at(path), unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return func(flock bool, kind lockKind) unix.Errno {
		err := (&holder{}).setOn(fd, lockOwner{flock: flock}, span{0, eof, kind})
		if err == nil {
			return 0
		}
		return errnoOf(err)
	}
}

// second is another daemon over the same layers, with a work directory of its own.
func (w *world) second(t *testing.T) *FS {
	t.Helper()
	work := w.at("work2")
	must(t, os.MkdirAll(work, 0o700))
	must(t, os.Rename(w.at("work"), w.at("work1")))
	must(t, os.Rename(work, w.at("work")))
	other := *w
	must(t, other.open())
	must(t, os.Rename(w.at("work"), work))
	must(t, os.Rename(w.at("work1"), w.at("work")))
	t.Cleanup(other.close)
	return other.fs
}

// eachLock runs f for both flavours of lock on every stacking.
func eachLock(t *testing.T, f func(t *testing.T, w *world, flock bool)) {
	base := worlds(t)
	for _, k := range stackings {
		for _, flock := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, flock %v", k.name, flock), func(t *testing.T) {
				w := newWorld(t, base, k)
				must(t, w.open())
				defer w.remove()
				defer w.close()
				f(t, w, flock)
				if fds := lockDescriptors(w.fs); fds != 0 {
					t.Errorf("%d owners of locks are left", fds)
				}
			})
		}
	}
}

func lockDescriptors(fs *FS) (n int) {
	fs.table.mu.Lock()
	defer fs.table.mu.Unlock()
	for _, node := range fs.table.byID {
		if l := node.locks.Load(); l != nil {
			l.mu.Lock()
			n += len(l.holders) + len(l.queue)
			l.mu.Unlock()
		}
	}
	return n
}

// TestLocks: what one client has keeps others of the mount away, and programs on
// the layer where the file is an inode of a layer that is ours to lock.
func TestLocks(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		for _, path := range []string{"up", "low", "dir/a"} {
			a := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			b := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			other := w.locker(t, w.fs, path, unix.O_RDWR, !flock)
			a.want("shared", a.try(unix.F_RDLCK), 0)
			b.want("shared, too", b.try(unix.F_RDLCK), 0)
			b.want("exclusive beside shared", b.try(unix.F_WRLCK), unix.EAGAIN)
			if flock {
				// A conversion that fails loses what there was (flock(2)).
				a.want("exclusive, alone by now", a.try(unix.F_WRLCK), 0)
			} else {
				a.want("exclusive beside shared", a.try(unix.F_WRLCK), unix.EAGAIN)
				b.want("unlock", b.try(unix.F_UNLCK), 0)
				a.want("exclusive, alone by now", a.try(unix.F_WRLCK), 0)
			}
			other.want("the other flavour", other.try(unix.F_WRLCK), 0)
			b.want("shared beside exclusive", b.try(unix.F_RDLCK), unix.EAGAIN)
			a.want("exclusive to shared", a.try(unix.F_RDLCK), 0)
			b.want("shared again", b.try(unix.F_RDLCK), 0)
			a.want("unlock", a.try(unix.F_UNLCK), 0)
			a.d.end()
			b.want("exclusive", b.try(unix.F_WRLCK), 0)
			layer := "upper/" + path
			if _, err := os.Stat(w.at(layer)); err == nil {
				try := w.outside(t, layer)
				b.want("on the layer", try(flock, shared), unix.EAGAIN)
				b.want("on the layer, the other flavour", try(!flock, shared), unix.EAGAIN)
				b.d.end()
				b.want("on the layer, shared", try(flock, shared), 0)
				c := w.locker(t, w.fs, path, unix.O_RDWR, flock)
				c.want("exclusive beside the layer's shared", c.try(unix.F_WRLCK), unix.EAGAIN)
				c.want("shared beside the layer's shared", c.try(unix.F_RDLCK), 0)
				c.d.end()
			} else if w.kind.mode == Migrate || path == "up" {
				t.Errorf("%s did not come up", path)
			}
			b.d.end()
			other.d.end()
		}
	})
}

// TestLockOutlivesCopyUp: what is locked while the file lies below is locked on
// the copy from the moment it is there, whoever waits included.
func TestLockOutlivesCopyUp(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		a := w.locker(t, w.fs, "low", unix.O_RDONLY, flock)
		b := w.locker(t, w.fs, "low", unix.O_RDWR, flock)
		a.want("shared", a.try(unix.F_RDLCK), 0)
		got := b.wait(unix.F_WRLCK, nil)
		waitFor(t, "a waiter", func() bool { return lockWaiters(w.fs) == 1 })
		var try func(bool, lockKind) unix.Errno
		if w.kind.mode == Migrate {
			try = w.outside(t, "l1/low")
			a.want("on the lower", try(flock, exclusive), unix.EAGAIN)
		}
		must(t, errnoErr((&driver{fs: w.fs}).write("low", "X", 0)))
		up := w.outside(t, "upper/low")
		a.want("on the copy", up(flock, exclusive), unix.EAGAIN)
		a.want("on the copy, shared", up(flock, shared), 0)
		if try != nil {
			a.want("on what was the lower copy", try(flock, exclusive), 0)
		}
		a.want("unlock", a.try(unix.F_UNLCK), 0)
		a.want("on the copy, unlock", up(flock, unlocked), 0)
		b.want("who waited", <-got, 0)
		a.want("on the copy, locked by who waited", up(flock, shared), unix.EAGAIN)
		b.d.end()
		a.want("on the copy, in the end", up(flock, exclusive), 0)
		a.d.end()
	})
}

// TestLockInterrupted: a signal ends a wait, and nothing is left of it.
func TestLockInterrupted(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		for _, path := range []string{"up", "low"} {
			a := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			b := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			a.want("exclusive", a.try(unix.F_WRLCK), 0)
			cancel := make(chan struct{})
			got := b.wait(unix.F_WRLCK, cancel)
			waitFor(t, "a waiter", func() bool { return lockWaiters(w.fs) == 1 })
			close(cancel)
			b.want("interrupted", <-got, unix.EINTR)
			a.want("unlock", a.try(unix.F_UNLCK), 0)
			a.want("again", a.try(unix.F_WRLCK), 0)
			a.d.end()
			b.d.end()
		}
	})
}

// TestLockOwnerCloses: a process's descriptors are all one (fcntl); an open
// file's lock stays until that is gone.
func TestLockOwnerCloses(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		a := w.locker(t, w.fs, "up", unix.O_RDWR, flock)
		b := w.locker(t, w.fs, "up", unix.O_RDWR, flock)
		a.want("exclusive", a.try(unix.F_WRLCK), 0)
		first := a.fh
		a.open(unix.O_RDONLY)
		a.flush() // the second one is closed
		w.fs.Release(nil, &fuse.ReleaseIn{Fh: a.fh})
		want := unix.Errno(0)
		if flock {
			want = unix.EAGAIN
		}
		b.want("after the owner closed a descriptor", b.try(unix.F_WRLCK), want)
		b.want("unlock", b.try(unix.F_UNLCK), 0)
		a.fh = first
		w.fs.Release(nil, &fuse.ReleaseIn{Fh: first})
		b.want("after the open file is gone", b.try(unix.F_WRLCK), 0)
		a.d.end()
		b.d.end()
	})
}

// TestGetLock: who has it is told, with range and process.
func TestGetLock(t *testing.T) {
	base := worlds(t)
	for _, k := range stackings {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, base, k)
			must(t, w.open())
			defer w.remove()
			defer w.close()
			a := w.locker(t, w.fs, "up", unix.O_RDWR, false)
			b := w.locker(t, w.fs, "up", unix.O_RDWR, false)
			ask := func(typ uint32, start, end uint64) fuse.FileLock {
				var out fuse.LkOut
				if st := w.fs.GetLk(nil, b.in(typ, start, end), &out); st != 0 {
					t.Error(st)
				}
				return out.Lk
			}
			want := func(what string, got fuse.FileLock, start, end uint64, typ, pid uint32) {
				t.Helper()
				if typ == unix.F_UNLCK {
					got.Start, got.End, got.Pid, start, end, pid = 0, 0, 0, 0, 0, 0
				}
				if (got != fuse.FileLock{Start: start, End: end, Typ: typ, Pid: pid}) {
					t.Errorf("%s: %+v", what, got)
				}
			}
			want("free", ask(unix.F_WRLCK, 0, eof), 0, 0, unix.F_UNLCK, 0)
			a.want("lock", a.tryRange(unix.F_WRLCK, 10, 19), 0)
			a.want("lock", a.tryRange(unix.F_RDLCK, 20, eof), 0)
			want("exclusive", ask(unix.F_RDLCK, 0, eof), 10, 19, unix.F_WRLCK, uint32(1000+a.owner))
			want("shared", ask(unix.F_WRLCK, 30, 40), 20, eof, unix.F_RDLCK, uint32(1000+a.owner))
			want("shared beside shared", ask(unix.F_RDLCK, 30, 40), 0, 0, unix.F_UNLCK, 0)
			want("beside it", ask(unix.F_WRLCK, 0, 9), 0, 0, unix.F_UNLCK, 0)
			b.want("lock", b.tryRange(unix.F_RDLCK, 0, 5), 0)
			b.want("lock", b.tryRange(unix.F_RDLCK, 30, 40), 0)
			c := w.locker(t, w.fs, "up", unix.O_RDONLY, false)
			var out fuse.LkOut
			w.fs.GetLk(nil, c.in(unix.F_WRLCK, 0, eof), &out)
			want("who came first", out.Lk, 10, 19, unix.F_WRLCK, uint32(1000+a.owner))
			c.d.end()
			b.flush()
			a.flush()
			fd, err := unix.Open(w.at("upper/up"), unix.O_RDWR|unix.O_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			must(t, sys.SetLock(fd, unix.F_WRLCK, 5, 6))
			want("of nobody known", ask(unix.F_WRLCK, 0, eof), 5, 6, unix.F_WRLCK, 0)
			must(t, sys.SetLock(fd, unix.F_UNLCK, 0, eof))
			must(t, unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 7}))
			want("of a process", ask(unix.F_WRLCK, 0, eof), 7, eof, unix.F_RDLCK, uint32(os.Getpid()))
			a.d.end()
			b.d.end()
		})
	}
}

// TestLockTwoHosts: two daemons over the same layers keep each other's clients
// away, wherever the file lies, and hand locks over.
func TestLockTwoHosts(t *testing.T) {
	base := worlds(t)
	for _, k := range stackings {
		if k.mode != Migrate {
			continue
		}
		for _, flock := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, flock %v", k.name, flock), func(t *testing.T) {
				w := newWorld(t, base, k)
				must(t, w.open())
				defer w.remove()
				defer w.close()
				there := w.second(t)

				// In the upper.
				a := w.locker(t, w.fs, "up", unix.O_RDWR, flock)
				b := w.locker(t, there, "up", unix.O_RDWR, flock)
				a.want("here", a.try(unix.F_WRLCK), 0)
				b.want("there", b.try(unix.F_WRLCK), unix.EAGAIN)
				got := b.wait(unix.F_WRLCK, nil)
				waitFor(t, "a waiter", func() bool { return lockWaiters(there) == 1 })
				a.want("unlock", a.try(unix.F_UNLCK), 0)
				b.want("there, in turn", <-got, 0)
				a.want("here, again", a.try(unix.F_RDLCK), unix.EAGAIN)
				a.d.end()
				b.d.end()

				// In a lower, shared by both: who wants it alone waits for both.
				a = w.locker(t, w.fs, "low", unix.O_RDWR, flock)
				b = w.locker(t, there, "low", unix.O_RDWR, flock)
				c := w.locker(t, there, "low", unix.O_RDWR, flock)
				a.want("shared", a.try(unix.F_RDLCK), 0)
				b.want("shared", b.try(unix.F_RDLCK), 0)
				c.want("exclusive", c.try(unix.F_WRLCK), unix.EAGAIN)
				if _, err := os.Lstat(w.at("upper/low")); err == nil {
					t.Error("a lock that was refused brought the file up")
				}
				got = c.wait(unix.F_WRLCK, nil)
				waitFor(t, "a waiter", func() bool { return lockWaiters(there) == 1 })
				b.want("unlock", b.try(unix.F_UNLCK), 0)
				a.want("unlock", a.try(unix.F_UNLCK), 0)
				c.want("exclusive, in turn", <-got, 0)
				if _, err := os.Lstat(w.at("upper/low")); err != nil {
					t.Error("an exclusive lock left the file below")
				}
				// What a has open is no longer what shows at the name: never a lock that
				// keeps nobody away.
				a.want("here, on what was the lower copy", a.try(unix.F_RDLCK), unix.ESTALE)
				a.want("here, on what was the lower copy", a.try(unix.F_WRLCK), unix.ESTALE)
				fresh := w.locker(t, w.fs, "low", unix.O_RDWR, flock)
				fresh.want("here, opened anew", fresh.try(unix.F_RDLCK), unix.EAGAIN)
				for _, l := range []*locker{a, b, c, fresh} {
					l.d.end()
				}
			})
		}
	}
}

// told is a server that counts what it is told.
type told struct{ files map[uint64]int }

func (s *told) InodeNotify(node uint64, _, _ int64) fuse.Status {
	s.files[node]++
	return fuse.OK
}

// TestLockShowsChanges: who gets a lock does not go on with what the kernel kept
// of a file that another host may have changed.
func TestLockShowsChanges(t *testing.T) {
	base := worlds(t)
	for _, k := range stackings {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, base, k)
			must(t, w.open())
			defer w.remove()
			defer w.close()
			s := &told{map[uint64]int{}}
			w.fs.notify = s
			a := w.locker(t, w.fs, "up", unix.O_RDWR, false)
			want := 0
			for i := range 3 {
				must(t, os.WriteFile(w.at("upper/up"), []byte{byte(i)}, 0o644))
				a.want("lock", a.try(unix.F_RDLCK), 0)
				if k.mode == Migrate {
					want++
				}
				if s.files[a.n] != want {
					t.Errorf("told %d times, want %d", s.files[a.n], want)
				}
				a.want("unlock", a.try(unix.F_UNLCK), 0)
			}
			a.d.end()
		})
	}
}

func TestContentsChanged(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	var c contents
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		write bool
		want  bool
	}{
		{0, false, true},               // nothing is known
		{time.Second, false, true},     // it may have changed within the first tick
		{3 * time.Second, false, true}, // what was kept since may be of that tick
		{time.Second, false, false},
		{time.Second, true, true},
		{tick, false, true},
		{tick, false, true},
		{tick, false, false},
	} {
		now = now.Add(step.after)
		if step.write {
			_, err := f.WriteString("x")
			must(t, err)
		}
		if got := c.changed(int(f.Fd()), now); got != step.want {
			t.Errorf("step %d: changed: %v", i, got)
		}
	}
}

// TestLockUnlinked: a file without a name is locked among who has it open.
func TestLockUnlinked(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		for _, path := range []string{"up", "low"} {
			a := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			b := w.locker(t, w.fs, path, unix.O_RDWR, flock)
			must(t, errnoErr((&driver{fs: w.fs}).in(path, func(h fuse.InHeader, name string) fuse.Status {
				return w.fs.Unlink(nil, &h, name)
			})))
			a.want("exclusive", a.try(unix.F_WRLCK), 0)
			b.want("beside it", b.try(unix.F_RDLCK), unix.EAGAIN)
			a.d.end()
			b.want("after it", b.try(unix.F_RDLCK), 0)
			b.d.end()
		}
	})
}

// TestLockQueue: many who wait get the lock one after the other, in the order in
// which they came, and no two at once.
func TestLockQueue(t *testing.T) {
	eachLock(t, func(t *testing.T, w *world, flock bool) {
		const many = 30
		first := w.locker(t, w.fs, "up", unix.O_RDWR, flock)
		first.want("exclusive", first.try(unix.F_WRLCK), 0)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range many {
			l := w.locker(t, w.fs, "up", unix.O_RDWR, flock)
			got := l.wait(unix.F_WRLCK, nil)
			waitFor(t, "another waiter", func() bool { return lockWaiters(w.fs) == i+1 })
			wg.Go(func() {
				l.want("in turn", <-got, 0)
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				l.want("unlock", l.try(unix.F_UNLCK), 0)
				l.d.end()
			})
		}
		first.d.end()
		wg.Wait()
		for i, j := range order {
			if i != j {
				t.Fatalf("order: %v", order)
			}
		}
	})
}

func lockWaiters(fs *FS) (n int) {
	fs.table.mu.Lock()
	defer fs.table.mu.Unlock()
	for _, node := range fs.table.byID {
		if l := node.locks.Load(); l != nil {
			l.mu.Lock()
			n += len(l.queue)
			l.mu.Unlock()
		}
	}
	return n
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func errnoErr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
