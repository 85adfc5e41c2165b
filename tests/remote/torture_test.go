package remote

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestTorture: crews read, write, truncate, link and rename in a tree that began on
// the source, each in a part of its own, and each knows what every file must hold.
// Meanwhile the link is cut, frozen, slow and corrupt, ssh and sftp-server die, and
// so does the daemon, which is then mounted anew. No read may ever bring a byte
// that was not written or was not on the source; what was written stays through
// the death of a daemon, and everything is there at the end.
//
// MIGRATEFS_TORTURE_SECONDS is how long it takes, MIGRATEFS_TORTURE_SEED what is
// done: with the same seed each crew and the breaker of links choose the same.
func TestTorture(t *testing.T) {
	length := 12 * time.Second
	if s := os.Getenv("MIGRATEFS_TORTURE_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		length = time.Duration(n) * time.Second
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MIGRATEFS_TORTURE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("MIGRATEFS_TORTURE_SEED=%d", seed)

	w := &world{b: newBed(t), options: ",timeout=6" + tortureOptions, stop: make(chan struct{})}
	var crews []*crew
	for i := range 4 {
		crews = append(crews, newCrew(w, i, seed))
	}
	const all = testbed.Usual | testbed.Mtime | testbed.Numbers
	before := testbed.Snapshot(t, w.b.dir, all)
	w.b.mount(w.options)

	var wg sync.WaitGroup
	for _, c := range crews {
		wg.Go(c.work)
	}
	go func() { // a slow machine does the same in more time
		time.Sleep(length)
		for end := time.Now().Add(2 * length); w.done.Load() < 500 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		close(w.stop)
	}()
	w.torment(rand.New(rand.NewPCG(seed, 1000)))
	wg.Wait()
	done, failed := 0, 0
	for _, c := range crews {
		c.closeAll()
		done, failed = done+c.done, failed+c.failed
	}
	t.Logf("%d operations, %d of which met an error of the link; %d daemons died", done, failed, w.deaths)
	for _, when := range []string{"at the end", "after a remount"} {
		for _, c := range crews {
			c.verify(when)
		}
		w.b.m.Unmount()
		if !t.Failed() && when == "at the end" {
			w.b.mount(w.options)
		}
	}
	testbed.Same(t, "the source", before, "the source after use", testbed.Snapshot(t, w.b.dir, all))
	out, err := exec.Command(testbed.BuildRace(t), "check", w.b.upper()).CombinedOutput()
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
}

// world is what all crews share.
type world struct {
	b       *bed
	options string
	stop    chan struct{} // closed when it is enough

	mu     sync.RWMutex // held for reading by every operation, for writing while there is no mount
	done   atomic.Int64 // operations that met no error
	dead   atomic.Bool  // the daemon was killed; set while mu may be held for reading
	deaths int          // of daemons; changes with mu held for writing
}

func (w *world) over() bool {
	select {
	case <-w.stop:
		return true
	default:
		return w.b.t.Failed()
	}
}

// torment breaks one thing after the other until it is over, and leaves everything
// whole.
func (w *world) torment(r *rand.Rand) {
	b := w.b
	for n := 1; !w.over(); n++ {
		pause := time.Duration(50+r.IntN(1200)) * time.Millisecond
		what := r.IntN(9)
		if n%4 == 0 {
			what = 9
		}
		switch what {
		case 0, 1:
			b.link.Cut()
		case 2:
			b.link.CutAfter(r.Int64N(300_000))
		case 3:
			b.link.CorruptAfter(r.Int64N(300_000))
		case 4:
			b.link.Stall()
			w.wait(pause)
			b.link.Resume()
		case 5:
			b.link.SetRate(100_000 + r.Int64N(1_000_000))
			w.wait(pause)
			b.link.SetRate(0)
		case 6:
			signal(b.clients(), unix.SIGKILL)
		case 7:
			signal(b.servers(), unix.SIGKILL)
		case 8:
			b.link.SetRTT(time.Duration(r.IntN(60)) * time.Millisecond)
		case 9:
			w.kill()
		}
		// Not before something was done: on a slow machine all of it would be spent on
		// logging in.
		for end, enough := time.Now().Add(8*time.Second), w.done.Load()+1+r.Int64N(150); w.done.Load() < enough && time.Now().Before(end) && !w.over(); {
			w.wait(20 * time.Millisecond)
		}
	}
	b.link.SetRTT(0)
}

func (w *world) wait(d time.Duration) {
	select {
	case <-w.stop:
	case <-time.After(d):
	}
}

// kill kills the daemon, under whatever it is doing, and mounts anew.
func (w *world) kill() {
	w.dead.Store(true)
	w.b.m.Kill()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		m, err := testbed.TryMount(w.b.t, w.b.options(w.options), w.b.mnt(), testbed.MountConfig{Env: w.b.sshd.Env()})
		if err == nil {
			w.b.m = m
			break
		}
		// A mount that begins while its link breaks fails.
		if w.over() && w.b.t.Failed() {
			return
		}
	}
	w.deaths++
	w.dead.Store(false)
}

// inode is a file as it must be.
type inode struct{ data []byte }

// folder is a directory as it must be.
type folder struct {
	name  string
	files map[string]*inode
}

// handle is an open file.
type handle struct {
	f   *os.File
	ino *inode
}

// crew works in a part of the tree.
type crew struct {
	w      *world
	rand   *rand.Rand
	root   string
	dirs   []*folder
	open   []*handle
	deaths int // of which open knows
	serial int // of new names

	done, failed int
	last         []string // operations
}

func newCrew(w *world, n int, seed uint64) *crew {
	c := &crew{w: w, rand: rand.New(rand.NewPCG(seed, uint64(n))), root: fmt.Sprintf("crew%d", n)}
	for d := range 3 {
		dir := &folder{name: fmt.Sprintf("d%d", d), files: map[string]*inode{}}
		for k := range 10 {
			name := fmt.Sprintf("f%d", k)
			size := c.rand.IntN(200_000)
			switch {
			case k == 0:
				size = 3 << 20
			case k == 1:
				size = c.rand.IntN(3)
			case k < 5:
				size = c.rand.IntN(8000)
			}
			dir.files[name] = &inode{data: w.b.put(c.root+"/"+dir.name+"/"+name, size)}
		}
		c.dirs = append(c.dirs, dir)
	}
	return c
}

func (c *crew) path(d *folder, name string) string {
	return filepath.Join(c.w.b.mnt(), c.root, d.name, name)
}

// attempt is one operation. Do does it. Apply does it to what must be; settle,
// where do has failed, finds out whether it was done, and returns an error as
// long as that cannot be seen. What changes nothing has neither.
type attempt struct {
	what   string
	do     func() error
	apply  func()
	settle func() error
}

// wrong is what must never be.
type wrong struct{ what string }

func (w *wrong) Error() string { return w.what }

func wrongf(format string, args ...any) error { return &wrong{fmt.Sprintf(format, args...)} }

// work does one operation after the other until it is over.
func (c *crew) work() {
	for !c.w.over() {
		a := c.choose()
		if a == nil {
			continue
		}
		err, dead := c.try(a.what, a.do)
		c.done++
		switch {
		case err == nil:
			c.w.done.Add(1)
			if a.apply != nil {
				a.apply()
			}
			continue
		case !c.excused(err, dead):
			c.fail(a.what, err)
			return
		}
		c.failed++
		if a.settle != nil && !c.until(a.what+", settled", a.settle) {
			return
		}
	}
}

// try runs one operation while there is a mount, and reports whether that died
// meanwhile.
func (c *crew) try(what string, do func() error) (err error, dead bool) {
	c.last = append(c.last[max(0, len(c.last)-40):], what)
	for {
		c.w.mu.RLock()
		if !c.w.dead.Load() {
			break
		}
		c.w.mu.RUnlock() // it died, and nobody has mounted yet
		time.Sleep(time.Millisecond)
	}
	defer c.w.mu.RUnlock()
	if c.deaths != c.w.deaths {
		c.deaths = c.w.deaths
		c.closeAll()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = do()
	}()
	select {
	case <-done:
	case <-time.After(hangs):
		c.w.b.m.Process().Signal(unix.SIGQUIT)
		c.w.b.m.Process().WaitFor(5 * time.Second)
		<-done
		err = wrongf("it hangs")
	}
	return err, c.w.dead.Load()
}

// excused reports whether err may be: the source is away, or the daemon is dead.
func (c *crew) excused(err error, dead bool) bool {
	var w *wrong
	if errors.As(err, &w) {
		return false
	}
	return errors.Is(err, unix.EIO) || dead && (errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)) ||
		errors.Is(err, errDropped)
}

// until repeats look until it has no excuse to fail. It is false if the test has
// failed.
func (c *crew) until(what string, look func() error) bool {
	for end := time.Now().Add(hangs); ; time.Sleep(20 * time.Millisecond) {
		err, dead := c.try(what, look)
		if err == nil {
			return true
		}
		if !c.excused(err, dead) || time.Now().After(end) {
			c.fail(what, err)
			return false
		}
		if c.w.b.t.Failed() {
			return false
		}
	}
}

func (c *crew) fail(what string, err error) {
	c.w.mu.RLock()
	log := c.w.b.m.Log()
	c.w.mu.RUnlock()
	c.w.b.t.Errorf("%s: %s: %v\nbefore that: %q\nthe daemon: ...%s", c.root, what, err, c.last, log[max(0, len(log)-4000):])
}

// closeAll gives up the open files.
func (c *crew) closeAll() {
	for _, h := range c.open {
		h.f.Close()
	}
	c.open = nil
}

// verify compares everything with what must be.
func (c *crew) verify(when string) {
	for _, d := range c.dirs {
		c.until(when+": list "+d.name, func() error { return c.list(d) })
		for name, ino := range d.files {
			c.until(when+": read "+d.name+"/"+name, func() error { return c.readWhole(d, name, ino.data) })
		}
	}
}
