package extent

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Cached data goes when there is more of it than there may be, or when the
// filesystem runs full: what was used the longest ago first. Of an object that
// nobody has open all goes, unless that is far more than has to; of others,
// regions. What there is is counted by the blocks of files, anew in each round. When
// an object was used is the time of its map file.
//
// Who reads takes no notice (Object.drops), and who may not lose what is here pins
// it (Object.Pin). Pending objects are never touched.

// regionLeast is the least size of a region: a multiple of every chunk.
const regionLeast = 1 << 20

var (
	// errEvicted: the object was thrown away while it was looked for.
	errEvicted = errors.New("evicted")

	// errNoCache: nothing is to be kept. It is as if there were no room.
	errNoCache error = unix.ENOSPC
)

// reserve is what cached data leaves free on a filesystem of that size: what can be
// fetched again must not be why a write fails.
func reserve(size int64) int64 { return min(size/20, 1<<30) }

// lack returns how much less than the reserve would be free if n more bytes were
// used, 0 if no less.
func (s *Store) lack(n int64) int64 {
	var st unix.Statfs_t
	if unix.Fstatfs(s.dir, &st) != nil {
		return 0
	}
	return max(0, n+reserve(int64(st.Blocks)*st.Bsize)-int64(st.Bavail)*st.Bsize)
}

// excess returns by how much more than the limit would be kept with n more bytes.
func (s *Store) excess(n int64) int64 {
	limit := s.limit.Load()
	if limit == 0 {
		return 0
	}
	return max(0, s.used.Load()+n-limit)
}

// room makes room for n more bytes that can be fetched again, cached ones or not.
// The error says why they cannot be kept. No lock is held.
func (s *Store) room(n int64, cached bool) error {
	if s.lack(n) > 0 {
		s.reclaim(n)
		if s.lack(n) > 0 {
			return unix.ENOSPC
		}
	}
	switch limit := s.limit.Load(); {
	case !cached || limit == 0:
	case limit < 0:
		return errNoCache
	case s.excess(n) > 0, s.stop == nil && !s.counted.Load():
		s.reclaim(n)
		if s.excess(n) > 0 {
			return unix.ENOSPC
		}
	case s.excess(n+limit/8) > 0:
		s.reclaimSoon()
	}
	return nil
}

// room is Store.room for bytes of o.
func (o *Object) room(n int64) error {
	if o.guest.Load() {
		return errInUse
	}
	o.wmu.Lock()
	cached := !o.pending
	o.wmu.Unlock()
	err := o.store.room(n, cached)
	if err != nil && o.store.Limit() >= 0 {
		return o.uncached(err)
	}
	return err
}

// grown counts what was kept of a cached object. o.wmu is held.
func (o *Object) grown(by []span) {
	if o.pending {
		return
	}
	for _, m := range by {
		o.store.used.Add(m.to - m.from)
		o.use(m.from, m.to-m.from)
	}
}

// giveWay makes room for n bytes that somebody writes, where cached data is in the
// way. No lock is held.
func (s *Store) giveWay(n int64) bool {
	if s.lack(n) == 0 {
		return false // it is not this filesystem that is full
	}
	before := s.used.Load()
	s.reclaim(n)
	return s.used.Load() < before
}

// reclaimSoon begins a round in the background, where the store does anything
// there, so that nobody has to wait for one at the limit.
func (s *Store) reclaimSoon() {
	if s.stop == nil || !s.reclaiming.CompareAndSwap(false, true) {
		return
	}
	s.rounds.Add(1)
	go func() {
		defer s.rounds.Done()
		defer s.reclaiming.Store(false)
		s.reclaim(max(0, s.Limit()/8))
	}()
}

// A kept is a cached object as its files show it.
type kept struct {
	name string
	size int64 // bytes in its blocks
	last int64 // when it was used: nanoseconds since 1970
}

// census returns the cached objects, those that were used the longest ago first,
// and the sum of their sizes.
func (s *Store) census() (all []kept, sum int64, err error) {
	names, err := s.names()
	if err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		base, suffix := splitName(name)
		if suffix != mapSuffix || base == "" || base[0] != 'c' {
			continue
		}
		var data, log unix.Statx_t
		if sys.Statx(s.dir, name, &log) != nil || sys.Statx(s.dir, base+dataSuffix, &data) != nil {
			continue // it goes just now, or comes
		}
		k := kept{base, int64(data.Blocks+log.Blocks) * 512, log.Mtime.Sec*1e9 + int64(log.Mtime.Nsec)}
		sum += k.size
		all = append(all, k)
	}
	s.mu.Lock()
	for i := range all {
		if e := s.objs[all[i].name]; e != nil && e.isReady() && e.obj != nil {
			all[i].last = max(all[i].last, e.obj.used.Load())
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b kept) int { return cmp.Compare(a.last, b.last) })
	return all, sum, nil
}

func (e *entry) isReady() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

// reclaim is one round: if n more bytes would be too many, it evicts until there is
// an eighth to spare. The first round counts only, unless it finds too much.
func (s *Store) reclaim(n int64) {
	s.reclaimMu.Lock()
	defer s.reclaimMu.Unlock()
	if s.counted.Load() && s.lack(n) == 0 && s.excess(n) == 0 {
		return // whoever had the lock before us has made room
	}
	if time.Now().Before(s.barren) {
		return
	}
	before := s.used.Load()
	all, sum, err := s.census()
	if err != nil {
		s.logOnce(err, "what is cached cannot be counted", "")
		return
	}
	s.used.Add(sum - before)
	s.counted.Store(true)
	var goal int64
	if lack := s.lack(n); lack > 0 {
		goal = lack + sum/8
	}
	if over := s.excess(n); over > 0 {
		goal = max(goal, over+s.Limit()/8)
	}
	var total int64
	for _, k := range all {
		if total >= goal {
			break
		}
		total += s.evict(k, goal-total)
	}
	s.used.Add(-total)
	if goal > 0 && total == 0 {
		// Whoever comes next need not look through all of it in vain.
		s.barren = time.Now().Add(time.Second)
	}
}

// evict takes at least goal bytes of k, if it has as many, and returns how many it
// took.
func (s *Store) evict(k kept, goal int64) (freed int64) {
	s.mu.Lock()
	if s.objs[k.name] == nil && k.size/2 <= goal {
		// Whoever wants it now waits, and makes it anew.
		e := &entry{ready: make(chan struct{}), err: errEvicted, name: k.name}
		s.objs[k.name] = e
		s.mu.Unlock()
		err := s.discard(k.name)
		s.forget(k.name, e)
		close(e.ready)
		if errors.Is(err, errInUse) {
			return 0
		}
		if err != nil {
			s.logOnce(err, "cached object cannot be removed", "")
			return 0
		}
		return k.size
	}
	s.mu.Unlock()
	o, err := s.get(k.name, func() (*Object, error) { return s.reopen(k.name) })
	if err != nil {
		return 0 // what is damaged goes when it is next wanted
	}
	defer o.Close()
	return o.shed(goal)
}

// shed makes at least n bytes of a cached object missing, the regions first that
// were used the longest ago, and returns how many it made.
func (o *Object) shed(n int64) (freed int64) {
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if o.pending || o.guest.Load() || o.pins > 0 || o.store.noPunch.Load() {
		return 0
	}
	for _, i := range o.oldest() {
		from := int64(i) * o.region
		to := min(o.limit, from+o.region)
		o.mu.RLock()
		has := to - from - o.present.absent(from, to)
		o.pieces.each(from, to, func(p *piece) bool {
			if p.doubted {
				has += int64(p.n)
			}
			return true
		})
		o.mu.RUnlock()
		if has == 0 {
			continue
		}
		// First nobody reads it any more, then it goes.
		o.drop(from, to)
		if len(o.owed) > 0 {
			return freed // not recorded: it will be when there is room
		}
		err := sys.Fallocate(o.data, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		if err != nil {
			// It is missing, and takes its place until it is fetched again, or the
			// whole object goes.
			if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
				o.store.noPunch.Store(true)
			}
			o.store.logOnce(err, "part of a cached object cannot be removed", o.src.Path)
			return freed
		}
		if freed += has; freed >= n {
			return freed
		}
	}
	return freed
}

// oldest returns the indices of all regions, those that were used the longest ago
// first.
func (o *Object) oldest() []int {
	all := make([]int, len(o.ages))
	last := make([]int64, len(o.ages))
	for i := range all {
		all[i], last[i] = i, o.ages[i].Load()
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(last[a], last[b]) })
	return all
}

// watch begins to note when which region of a cached object is used.
func (o *Object) watch() {
	size := o.src.Version.Size // may be as large as the source says
	o.region = max(regionLeast, (size/4096+regionLeast-1)/regionLeast*regionLeast)
	o.ages = make([]atomic.Int64, (max(size, 1)-1)/o.region+1)
}

// use notes that [off, off+n) is used now.
func (o *Object) use(off, n int64) {
	if len(o.ages) == 0 || n <= 0 {
		return
	}
	now := time.Now().UnixNano()
	o.used.Store(now)
	for i := off / o.region; i <= (off+n-1)/o.region && i < int64(len(o.ages)); i++ {
		o.ages[i].Store(now)
	}
}

// stamp notes on disk that the object is used now: when it is opened, and when it is
// closed if it was used for long.
func (o *Object) stamp(closing bool) {
	now := time.Now().UnixNano()
	if len(o.ages) == 0 || closing && o.used.Load()-o.stamped < int64(10*time.Second) {
		return
	}
	o.stamped = now
	_ = sys.BeatAt(o.mapFd, "")
}

// Pin keeps what is present from being evicted until release is called. It is for
// who has asked PresentRange and reads from DataFd, or cannot fetch it again; who
// calls ReadAt needs none.
func (o *Object) Pin() (release func()) {
	o.wmu.Lock()
	defer o.wmu.Unlock()
	o.pins++
	return func() {
		o.wmu.Lock()
		defer o.wmu.Unlock()
		o.pins--
	}
}
