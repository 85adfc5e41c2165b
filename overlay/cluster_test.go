package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// TestCluster lets daemons work on one small tree at random, all at once: in rounds,
// each of which has to be what some order of its calls makes of the round before.
// Between any two changes of a layer a daemon may wait, stand still for so long that
// others break its claims, or die; others take its place, and one drains.
//
//	MIGRATEFS_CLUSTER_SEED     what it starts from; the log says which it was
//	MIGRATEFS_CLUSTER_SECONDS  how long (10)
//	MIGRATEFS_CLUSTER_DAEMONS  how many (4)
//	MIGRATEFS_CLUSTER_LINKS    1: few files with many names each, which come and go (every third tree)
func TestCluster(t *testing.T) {
	base := worlds(t)
	seed := uint64(setting(t, "MIGRATEFS_CLUSTER_SEED", int(time.Now().UnixNano()&0x3fffffff)))
	daemons := setting(t, "MIGRATEFS_CLUSTER_DAEMONS", 4)
	until := time.Now().Add(time.Duration(setting(t, "MIGRATEFS_CLUSTER_SECONDS", 10)) * time.Second)
	defer sys.SetHook(nil)
	before, open := runtime.NumGoroutine(), descriptors(t)
	var sum clusterCounts
	for ; time.Now().Before(until) && !t.Failed(); seed++ {
		c := newCluster(t, base, seed, daemons)
		for round := 0; round < 9 && !t.Failed(); round++ {
			c.round(round)
		}
		c.end()
		sum.add(&c.counts)
		if t.Failed() {
			t.Logf("MIGRATEFS_CLUSTER_SEED=%d MIGRATEFS_CLUSTER_DAEMONS=%d begins with what failed", seed, daemons)
		}
	}
	sys.SetHook(nil)
	for i := 0; runtime.NumGoroutine() > before && !t.Failed(); i++ {
		if i > 3000 {
			t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if now := descriptors(t); len(now) > len(open) && !t.Failed() {
		t.Errorf("%d descriptors are left open", len(now)-len(open))
	}
	t.Logf("%+v", sum)
	if !t.Failed() && (sum.calls == 0 || sum.vague*5 > sum.calls) {
		t.Errorf("of %d calls, %d were told nothing", sum.calls, sum.vague)
	}
}

func setting(t *testing.T, name string, otherwise int) int {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	must(t, err)
	return n
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// clusterCounts says what a run was made of.
type clusterCounts struct {
	worlds, rounds, calls, vague, deaths, stalls, drained int
}

func (c *clusterCounts) add(o *clusterCounts) {
	c.worlds, c.rounds, c.calls, c.vague = c.worlds+1, c.rounds+o.rounds, c.calls+o.calls, c.vague+o.vague
	c.deaths, c.stalls, c.drained = c.deaths+o.deaths, c.stalls+o.stalls, c.drained+o.drained
}

// member is one daemon.
type member struct {
	*world
	number int
	dead   atomic.Bool
	left   atomic.Int64 // changes until it dies; far below zero: it does not
}

// staleInCluster is when claims are broken: soon, so that the slow lose theirs.
const staleInCluster = 30 * time.Millisecond

type cluster struct {
	t      *testing.T
	seed   uint64
	dir    string
	kind   stacking
	state  *clusterState
	links  bool         // few files, of many names
	files  atomic.Int64 // made so far
	unique atomic.Uint64
	clock  atomic.Int64

	members []*member
	drainer *member
	number  int
	counts  clusterCounts

	mu     sync.Mutex
	who    map[uint64]*member // by goroutine
	pace   *rand.Rand
	wild   bool // some stand still
	events []*event
	steps  []string
}

func newCluster(t *testing.T, base string, seed uint64, daemons int) *cluster {
	worldNumber++
	c := &cluster{
		t: t, seed: seed, dir: filepath.Join(base, fmt.Sprint(worldNumber)), kind: steppedHosts,
		who: map[uint64]*member{}, pace: rand.New(rand.NewPCG(seed, 1)),
	}
	c.links = setting(t, "MIGRATEFS_CLUSTER_LINKS", int(seed%3)) == 1
	c.fill(rand.New(rand.NewPCG(seed, 2)))
	sys.SetHook(c.hook)
	for range daemons {
		c.members = append(c.members, c.join())
	}
	c.drainer = c.join()
	return c
}

// fill makes the tree, most of it in the lower.
func (c *cluster) fill(r *rand.Rand) {
	w := &world{t: c.t, dir: c.dir, kind: c.kind}
	for _, d := range []string{"", "upper", "work", "l1", "l2"} {
		must(c.t, os.Mkdir(w.at(d), 0o755))
	}
	c.state = &clusterState{files: map[int]clusterFile{}}
	for _, d := range []string{"d1", "d2"} {
		w.mkdir("l1", d)
	}
	w.mkdir("upper", "d1")
	if r.IntN(2) == 0 {
		w.mkdir("l1", "d3")
		c.state.names[clusterDir] = theDir
	}
	for i, name := range clusterNames {
		if i == clusterDir || !parentThere(c.state, i) {
			continue
		}
		where, kind := "l1", r.IntN(8)
		if c.links && kind < 7 && len(c.state.files) > 0 {
			kind = 3
		}
		switch kind {
		case 0, 1:
			continue
		case 2:
			where = "upper"
			must(c.t, os.MkdirAll(filepath.Dir(w.at(where, name)), 0o750))
		case 3, 4:
			if other := r.IntN(len(clusterNames)); c.state.names[other] > 0 && c.linkAt(w, other, name) {
				c.state.names[i] = c.state.names[other]
				continue
			}
		}
		id := int(c.files.Add(1))
		f := clusterFile{mode: 0o600}
		for range r.IntN(40) {
			f.records += clusterRecord(c.unique.Add(1))
		}
		must(c.t, os.WriteFile(w.at(where, name), []byte(f.content(id)), 0o600))
		c.state.names[i], c.state.files[id] = id, f
	}
	if _, err := os.Lstat(w.at("upper/d3")); err == nil && c.state.names[clusterDir] == 0 {
		c.t.Fatal("a directory that should not be")
	}
	c.state.seal()
}

func (c *cluster) linkAt(w *world, other int, name string) bool {
	return os.Link(w.at("l1", clusterNames[other]), w.at("l1", name)) == nil
}

// join starts a daemon.
func (c *cluster) join() *member {
	c.number++
	m := &member{world: &world{t: c.t, dir: c.dir, kind: c.kind}, number: c.number}
	m.left.Store(-1 << 40)
	c.as(m, func() { must(c.t, m.open()) })
	m.fs.turns.Stale = staleInCluster
	return m
}

// as runs f in a goroutine whose changes are m's.
func (c *cluster) as(m *member, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g, _ := goroutines(true)
		c.mu.Lock()
		c.who[g] = m
		c.mu.Unlock()
		f()
	}()
	<-done
}

// goroutines is the number of the calling goroutine and of who started it.
func goroutines(alone bool) (own, parent uint64) {
	if alone {
		return goid(), 0
	}
	b := make([]byte, 1<<16)
	b = b[:runtime.Stack(b, false)]
	own, _ = strconv.ParseUint(string(bytes.Fields(b)[1]), 10, 64)
	if i := bytes.LastIndex(b, []byte("in goroutine ")); i >= 0 {
		f := bytes.Fields(b[i:])
		parent, _ = strconv.ParseUint(string(f[2]), 10, 64)
	}
	return own, parent
}

// actor is whose change the calling goroutine makes: its own, or its parent's.
func (c *cluster) actor() *member {
	g := goid()
	c.mu.Lock()
	m, known := c.who[g]
	c.mu.Unlock()
	if known {
		return m
	}
	_, parent := goroutines(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	m = c.who[parent]
	c.who[g] = m
	return m
}

func (c *cluster) hook(ch sys.Change) error {
	m := c.actor()
	if m == nil {
		return nil
	}
	if m.left.Add(-1) == 0 {
		m.dead.Store(true)
	}
	if m.dead.Load() {
		return errDead
	}
	c.mu.Lock()
	p := c.pace.IntN(1000)
	pause := time.Duration(c.pace.IntN(1000)) * time.Microsecond
	c.steps = append(c.steps, fmt.Sprintf("%5d  daemon %d goroutine %d: %s", c.clock.Load(), m.number, goid(), ch))
	at := len(c.steps) - 1
	wild := c.wild
	if p < 8 && wild {
		c.counts.stalls++
		c.steps[at] += " after standing still"
	}
	c.mu.Unlock()
	switch {
	case p < 8 && wild:
		time.Sleep(3*staleInCluster + pause)
	case p < 30:
		time.Sleep(5 * pause)
	case p < 200:
		time.Sleep(pause)
	case p < 500:
		runtime.Gosched()
	}
	if m.dead.Load() { // it died while this stood still
		return errDead
	}
	c.mu.Lock()
	if p < 200 {
		c.steps = append(c.steps, fmt.Sprintf("%5d  daemon %d goroutine %d: %s, now", c.clock.Load(), m.number, goid(), ch))
	}
	c.mu.Unlock()
	return nil
}

// round lets all work, then looks at what came of it.
func (c *cluster) round(number int) {
	c.mu.Lock()
	c.events, c.steps = nil, nil
	c.counts.rounds++
	r := rand.New(rand.NewPCG(c.seed, uint64(100+number)))
	c.wild = r.IntN(2) == 0
	c.mu.Unlock()
	if r.IntN(2) == 0 {
		c.members[r.IntN(len(c.members))].left.Store(int64(1 + r.IntN(12)))
	}
	var all sync.WaitGroup
	start := func(m *member, f func()) {
		all.Add(1)
		go func() { defer all.Done(); c.as(m, f) }()
	}
	for i, m := range c.members {
		cl := &client{c: c, m: m, number: i, r: rand.New(rand.NewPCG(c.seed, uint64(1000*number+i)<<8))}
		start(m, func() { cl.work(3) })
	}
	if number%3 == 1 {
		start(c.drainer, c.drain)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		c.report("the calls do not end")
		c.t.Fatalf("%s", stacks())
	}
	c.bury()
	c.judge()
}

func (c *cluster) drain() {
	err := c.drainer.fs.Drain(context.Background(), DrainConfig{Jobs: 2, Failed: func(DrainFailure) {}, Seen: new(DrainCounts)})
	if err != nil && !errors.Is(err, errDead) {
		c.t.Errorf("a drain: %v", err)
	}
	c.counts.drained++
}

// bury puts new daemons in the place of the dead.
func (c *cluster) bury() {
	for i, m := range c.members {
		if !m.dead.Load() {
			m.left.Store(-1 << 40)
			continue
		}
		c.counts.deaths++
		c.as(m, m.close)
		c.members[i] = c.join()
	}
}

// judge compares what all daemons see, and a new one, with what may have come of the
// events.
func (c *cluster) judge() {
	slices.SortFunc(c.events, func(a, b *event) int { return int(a.start - b.start) })
	for _, e := range c.events {
		c.counts.calls++
		if e.unsure() && !e.dead {
			c.counts.vague++
		}
		if e.took > time.Minute {
			c.t.Errorf("it took too long: %v", e)
		}
	}
	fresh := c.join()
	defer func() { c.as(fresh, fresh.close) }()
	var seen *clusterState
	c.as(fresh, func() { seen = c.see(fresh) })
	if seen == nil {
		c.report("a new daemon cannot be looked at")
		return
	}
	from := c.state
	o, ok := explain(from, c.events, seen)
	if !ok {
		var ends strings.Builder
		for _, s := range o.ends {
			fmt.Fprintf(&ends, "it may have ended as\n%s", s)
			if ends.Len() > 6000 {
				break
			}
		}
		if len(o.ends) == 0 {
			fmt.Fprintf(&ends, "at most these can be put in an order:\n")
			for i, e := range o.events {
				if o.best&(1<<i) != 0 {
					fmt.Fprintf(&ends, "\t%v\n", e)
				}
			}
			fmt.Fprintf(&ends, "which makes\n%s", o.bestAt)
		}
		c.report(fmt.Sprintf("no order of these calls makes what is seen:\n%s%s", seen, ends.String()))
		return
	}
	c.state = o.end
	for _, m := range c.members {
		c.as(m, func() {
			if now := c.see(m); now == nil || now.key != seen.key {
				c.report(fmt.Sprintf("daemon %d sees\n%snot\n%s", m.number, now, seen))
			}
		})
	}
}

func (c *cluster) report(what string) {
	var b strings.Builder
	for _, e := range c.events {
		fmt.Fprintf(&b, "\t%v\n", e)
	}
	c.mu.Lock()
	steps := strings.Join(c.steps, "\n\t")
	c.mu.Unlock()
	var on strings.Builder
	for _, l := range []string{"upper", "l1"} {
		_ = filepath.WalkDir(filepath.Join(c.dir, l), func(p string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && unix.Lstat(p, &st) == nil {
				rel, _ := filepath.Rel(c.dir, p)
				var head []byte
				if st.Mode&unix.S_IFMT == unix.S_IFREG {
					head, _ = os.ReadFile(p)
				}
				fmt.Fprintf(&on, "\t%s ino %d mode %o links %d %q\n", rel, st.Ino, st.Mode, st.Nlink, head[:min(len(head), headSize)])
			}
			return nil
		})
	}
	c.t.Errorf("seed %d: %s\nit began as\n%s\ncalls:\n%s\nchanges of layers, and when, or which came then:\n\t%s\nthe layers:\n%s",
		c.seed, what, c.state, b.String(), steps, on.String())
}

// see is the tree as m sees it; nil, and the test has failed, if it cannot be seen.
func (c *cluster) see(m *member) *clusterState {
	v, err := m.look()
	if err != nil {
		c.t.Errorf("daemon %d: %v", m.number, err)
		return nil
	}
	s := &clusterState{files: map[int]clusterFile{}}
	for name, f := range v {
		i := slices.Index(clusterNames, name)
		switch {
		case name == "d1" || name == "d2":
			continue
		case i < 0:
			c.t.Errorf("daemon %d sees %q: %v", m.number, name, f)
			return nil
		case f.typ == unix.S_IFDIR:
			s.names[i] = theDir
			continue
		}
		id, x, err := c.parse(f.content)
		if err != nil {
			c.t.Errorf("daemon %d: %q: %v", m.number, name, err)
			return nil
		}
		if id == blankFile {
			id = 1000000 + int(c.inode(m, name))
		}
		x.mode = f.mode
		if was, twice := s.files[id]; twice && was != x {
			c.t.Errorf("daemon %d: file %d is two files, %v and %v", m.number, id, was, x)
			return nil
		}
		s.names[i], s.files[id] = id, x
	}
	return s.seal()
}

// inode is the st_ino of a name.
func (c *cluster) inode(m *member, name string) (ino uint64) {
	d := &driver{fs: m.fs}
	defer d.end()
	_ = d.in(name, func(h fuse.InHeader, name string) fuse.Status {
		if _, out, errno := d.lookup(h.NodeId, name); errno == 0 {
			ino = out.Ino
		}
		return 0
	})
	return ino & 0xffffff
}

func (c *cluster) parse(content string) (id int, f clusterFile, err error) {
	if content == "" {
		return blankFile, clusterFile{blank: true}, nil
	}
	if len(content) < headSize || (len(content)-headSize)%recordSize != 0 {
		return 0, f, fmt.Errorf("%d bytes: %q", len(content), content)
	}
	id, err = strconv.Atoi(content[1:8])
	if err == nil {
		f.value, err = strconv.ParseUint(content[valueAt:valueAt+valueSize], 10, 64)
	}
	f.records = content[headSize:]
	if err == nil && f.content(id) != content {
		err = errors.New("not what was ever written")
	}
	if err != nil {
		err = fmt.Errorf("%q: %w", content, err)
	}
	return id, f, err
}

// end drains the tree: then all of it is in the upper, once, and check finds nothing.
func (c *cluster) end() {
	if !c.t.Failed() {
		c.wild = false
		c.as(c.drainer, func() {
			time.Sleep(2 * staleInCluster)
			stays, _ := c.drainer.drainAll(DrainConfig{Jobs: 2})
			// Who died between a rename in the upper and the removal of what that replaced
			// below has left this: what of the two is wanted nobody can tell.
			maps.DeleteFunc(stays, func(_ string, err error) bool { return c.counts.deaths > 0 && errors.Is(err, ErrShadowed) })
			if left := c.drainer.namesIn("l1"); len(stays) > 0 || len(left) > 0 && c.counts.deaths == 0 {
				c.report(fmt.Sprintf("a drain leaves %v, %q in the lower", stays, left))
			}
			if now := c.see(c.drainer); now == nil || now.key != c.state.key {
				c.report(fmt.Sprintf("after it is drained, it is\n%s", now))
			}
		})
	}
	for _, m := range append(c.members, c.drainer) {
		c.as(m, m.close)
	}
	sys.SetHook(nil)
	w := &world{t: c.t, dir: c.dir, kind: c.kind}
	if !c.t.Failed() {
		for _, f := range w.check(false) {
			if f.Kind == FoundDifferent && c.counts.deaths > 0 {
				continue
			}
			if f.Mends == "" || !slices.Contains([]string{FoundTemp, FoundClaim, FoundDaemon, FoundMarker, FoundIndex, FoundTrash}, f.Kind) {
				c.report("check: " + f.String())
			}
		}
	}
	w.remove()
}

// client is a program that works on the merged tree.
type client struct {
	c      *cluster
	m      *member
	number int
	r      *rand.Rand
}

func (cl *client) work(calls int) {
	for range calls {
		if cl.m.dead.Load() {
			return
		}
		d := &driver{fs: cl.m.fs}
		cl.once(d)
		d.end() // of the dead as well: it changes nothing any more, and closes descriptors
	}
}

// name is one of the names of files.
func (cl *client) name() int {
	for {
		if i := cl.r.IntN(len(clusterNames)); i != clusterDir {
			return i
		}
	}
}

// call does one thing and notes when, and what it was told.
func (cl *client) call(e *event, f func() unix.Errno) bool {
	c := cl.c
	e.who = cl.m.number
	if e.start == 0 {
		e.start = c.clock.Add(1)
	}
	began := time.Now()
	e.res = f()
	e.took = time.Since(began)
	e.dead = cl.m.dead.Load()
	e.end = c.clock.Add(1)
	c.mu.Lock()
	c.events = append(c.events, e)
	if e.dead && e.flags == unix.RENAME_NOREPLACE {
		half := *e // it may have both names, as rename(2) has it, and loses nothing
		half.flags = halfRename
		c.events = append(c.events, &half)
	}
	c.mu.Unlock()
	return e.res == 0 && !e.dead
}

// once does one thing that programs do. What it is depends on the seed alone.
func (cl *client) once(d *driver) {
	what, name, to, flags := cl.r.IntN(100), cl.name(), cl.name(), cl.r.IntN(8)
	path := clusterNames[name]
	if cl.c.links {
		what = linksInstead(what)
	}
	switch {
	case what < 22:
		cl.change(d, name, evAppend)
	case what < 30:
		cl.change(d, name, evPoke)
	case what < 34:
		cl.change(d, name, evTrunc)
	case what < 42:
		cl.onNode(d, name, evChmod, 0)
	case what < 45:
		cl.onNode(d, name, evTouch, 0)
	case what < 52:
		cl.onNode(d, name, evLink, to)
	case what < 65:
		cl.call(&event{kind: evUnlink, name: name}, func() unix.Errno { return d.unlink(path) })
	case what < 82:
		e := &event{kind: evRename, name: name, to: to}
		switch {
		case flags == 0:
			e.flags = unix.RENAME_NOREPLACE
		case flags == 1:
			e.flags = unix.RENAME_EXCHANGE
		}
		cl.call(e, func() unix.Errno { return d.rename(path, clusterNames[to], e.flags) })
	case what < 89:
		cl.create(d, name)
	case what < 92:
		cl.call(&event{kind: evMkdir, name: clusterDir}, func() unix.Errno {
			return cl.make(d, "d3", func(fuse.InHeader, string) fuse.Status { return fuse.Status(d.mkdir("d3")) })
		})
	case what < 95:
		cl.call(&event{kind: evRmdir, name: clusterDir}, func() unix.Errno { return d.rmdir("d3") })
	default:
		cl.read(d, name)
	}
}

// linksInstead is what once does in place of what where it is about names.
func linksInstead(what int) int {
	switch {
	case what >= 6 && what < 22, what >= 84 && what < 92:
		return 45 // link
	case what >= 24 && what < 34:
		return 52 // unlink
	case what >= 36 && what < 42:
		return 65 // rename
	}
	return what
}

// make runs f, which gives the name path to something, as the kernel would: where it
// finds that there is one, it does not ask.
func (cl *client) make(d *driver, path string, f func(fuse.InHeader, string) fuse.Status) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		switch _, _, errno := d.lookup(h.NodeId, name); errno {
		case 0:
			return fuse.Status(unix.EEXIST)
		case unix.ENOENT:
			return f(h, name)
		default:
			return fuse.Status(errno)
		}
	})
}

// opened is a file that was looked up and opened, and read to see which it is.
type opened struct {
	fh   uint64
	node uint64
	id   int

	since int64 // when that began
}

func (cl *client) open(d *driver, name int, flags uint32) (o opened, ok bool) {
	e := &event{kind: evOpen, name: name}
	ok = cl.call(e, func() unix.Errno {
		return d.on(clusterNames[name], func(h fuse.InHeader) fuse.Status {
			var out fuse.OpenOut
			st := d.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: flags}, &out)
			if st != 0 {
				return st
			}
			d.open = append(d.open, out.Fh)
			o.fh, o.node = out.Fh, h.NodeId
			content, errno := cl.readOnce(d, out.Fh)
			if errno != 0 {
				return fuse.Status(errno)
			}
			if o.id, _, _ = cl.c.parse(content); o.id == 0 {
				cl.c.t.Errorf("%s holds %q", clusterNames[name], content)
			}
			e.id = o.id
			return st
		})
	})
	o.since = e.start
	return o, ok && o.id > 0
}

func (cl *client) readOnce(d *driver, fh uint64) (string, unix.Errno) {
	buf := make([]byte, 1<<15)
	res, st := d.fs.Read(nil, &fuse.ReadIn{Fh: fh, Size: uint32(len(buf))}, buf)
	if st != 0 {
		return "", unix.Errno(st)
	}
	defer res.Done()
	b, st := res.Bytes(buf)
	return string(b), unix.Errno(st)
}

func (cl *client) read(d *driver, name int) {
	o, ok := cl.open(d, name, 0)
	if !ok {
		return
	}
	// It sees what was closed before the open, not before the read.
	e := &event{kind: evRead, name: name, id: o.id, start: o.since}
	cl.call(e, func() (errno unix.Errno) {
		e.got, errno = cl.readOnce(d, o.fh)
		return errno
	})
}

// change opens a file and changes what is in it.
func (cl *client) change(d *driver, name int, kind eventKind) {
	flags := uint32(unix.O_RDWR)
	if kind == evAppend {
		flags |= unix.O_APPEND
	}
	o, ok := cl.open(d, name, flags)
	if !ok {
		return
	}
	e := &event{kind: kind, name: name, id: o.id, arg: cl.c.unique.Add(1)}
	cl.call(e, func() unix.Errno {
		switch kind {
		case evTrunc:
			var out fuse.AttrOut
			return unix.Errno(d.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{
				InHeader: fuse.InHeader{NodeId: o.node}, Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: o.fh, Size: headSize,
			}}, &out))
		case evAppend:
			return cl.put(d, o, clusterRecord(e.arg), 0, flags)
		}
		return cl.put(d, o, fmt.Sprintf("%022d", e.arg), valueAt, flags)
	})
}

// put writes and syncs.
func (cl *client) put(d *driver, o opened, content string, off uint64, flags uint32) unix.Errno {
	h := fuse.InHeader{NodeId: o.node}
	_, st := d.fs.Write(nil, &fuse.WriteIn{InHeader: h, Fh: o.fh, Offset: off, Flags: flags, Size: uint32(len(content))}, []byte(content))
	if st == 0 {
		st = d.fs.Fsync(nil, &fuse.FsyncIn{InHeader: h, Fh: o.fh})
	}
	return unix.Errno(st)
}

// onNode does what is done by name, to a file that is known.
func (cl *client) onNode(d *driver, name int, kind eventKind, to int) {
	mode := uint32(0o600 + cl.r.IntN(0o100))
	o, ok := cl.open(d, name, 0)
	if !ok {
		return
	}
	e := &event{kind: kind, name: name, id: o.id, to: to, arg: uint64(mode)}
	in := fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: o.node}, Valid: fuse.FATTR_MODE, Mode: mode}
	if kind == evTouch {
		in.Valid, in.Mtime, in.Atime = fuse.FATTR_MTIME|fuse.FATTR_ATIME, uint64(mode), uint64(mode)
	}
	cl.call(e, func() unix.Errno {
		if kind == evLink {
			return cl.make(d, clusterNames[to], func(h fuse.InHeader, name string) fuse.Status {
				var out fuse.EntryOut
				return d.born(&out, d.fs.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: o.node}, name, &out))
			})
		}
		var out fuse.AttrOut
		return unix.Errno(d.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out))
	})
}

func (cl *client) create(d *driver, name int) {
	id := int(cl.c.files.Add(1))
	var o opened
	if !cl.call(&event{kind: evCreate, name: name, id: id}, func() unix.Errno {
		return cl.make(d, clusterNames[name], func(h fuse.InHeader, name string) fuse.Status {
			var out fuse.CreateOut
			st := d.fs.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR | unix.O_EXCL, Mode: 0o640}, name, &out)
			if d.born(&out.EntryOut, st) == 0 {
				d.open = append(d.open, out.Fh)
				o.fh, o.node = out.Fh, out.NodeId
			}
			return st
		})
	}) {
		return
	}
	cl.call(&event{kind: evHead, name: name, id: id}, func() unix.Errno { return cl.put(d, o, clusterHead(id, 0), 0, unix.O_RDWR) })
}
