package extent

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// inherit makes a guest the owner, if nobody has the object any more: what it fetches
// from then on is kept. It reports whether it is.
func (o *Object) inherit() bool {
	o.syncMu.Lock()
	defer o.syncMu.Unlock()
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if !o.guest.Load() {
		return true // somebody else did it
	}
	if sys.Flock(o.data, unix.LOCK_EX) != nil {
		return false
	}
	if unlock, err := o.store.lockDir(); err == nil {
		defer unlock()
		if o.takeOver() {
			o.guest.Store(false)
			return true
		}
	}
	_ = sys.Flock(o.data, unix.LOCK_UN)
	return false
}

// takeOver reads the map as the owner left it. Where anything is not as it should be, who
// opens the object anew sees to that. syncMu, wmu and the lock of the directory are held.
func (o *Object) takeOver() bool {
	var data unix.Stat_t
	if unix.Fstat(o.data, &data) != nil || data.Nlink == 0 {
		return false // it was thrown away
	}
	fd, err := sys.OpenAt(o.store.dir, o.name+mapSuffix, unix.O_RDWR)
	if err != nil {
		return false
	}
	b, err := readAll(fd, maxMap)
	var st *state
	if err == nil {
		st, err = replay(b, o.store.boot, o.store.durableEpoch)
	}
	if err != nil || st.redo || !st.sums || !st.src.same(&o.src) || st.limit != o.limit || data.Size != o.limit {
		unix.Close(fd)
		return false
	}
	unix.Close(o.mapFd)
	o.mapFd = fd
	o.mu.Lock()
	defer o.mu.Unlock()
	o.take(st)
	o.believe()
	o.compactAt = max(compactMin, 2*o.chain.index)
	return true
}
