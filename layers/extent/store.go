package extent

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Names in the store's directory: 'c' and a key, or 'p' and an ID, and a suffix.
const (
	dataSuffix = ".data"
	mapSuffix  = ".map"
	tmpSuffix  = ".tmp"
)

// Config is what OpenStore may be told. The zero value is fit for use.
type Config struct {
	Logger *slog.Logger // nil: slog.Default()

	// SyncEvery is how often Store.Sync runs by itself: what was written and not
	// synced may be lost with the host's power for that long. 0 means 10 s,
	// negative means never.
	SyncEvery time.Duration

	// Limit is how many bytes cached objects may take on the disk: what was used
	// the longest ago goes for what is new. 0 means as many as leave the filesystem
	// a twentieth of its size, at most 1 GiB, which is left in any case; negative
	// means none.
	Limit int64

	// Shared: other processes may have the store open. It holds cached objects
	// only; see shared.go.
	Shared bool

	// Percent, unless it is 0, is Limit as a part of the filesystem.
	Percent float64

	// For tests.
	BootID string           // 16 bytes; "" means the kernel's
	Now    func() time.Time // nil: time.Now
}

// Store is the objects in one directory. One process at a time may have it
// open, unless it is shared; it does not check that.
type Store struct {
	dir  int
	log  *slog.Logger
	now  func() time.Time
	boot bootID

	mu     sync.Mutex
	objs   map[string]*entry // by name; protected by mu
	epochs []bootEpoch       // protected by mu; written under syncMu too
	proved map[string]chain  // protected by mu; see noteProved

	gate  sync.RWMutex
	epoch int64 // of records that are appended now; protected by gate

	limit      atomic.Int64   // Config.Limit
	used       atomic.Int64   // bytes that cached objects take, as far as is known
	reclaimMu  sync.Mutex     // one round at a time; before all locks of objects
	counted    atomic.Bool    // used is not a guess
	barren     time.Time      // protected by reclaimMu: no other round before
	reclaiming atomic.Bool    // a round runs in the background
	rounds     sync.WaitGroup // of these
	noPunch    atomic.Bool    // the filesystem cannot take away parts of a file

	unsynced atomic.Bool // records were appended since the last Sync

	syncMu  sync.Mutex
	syncErr error // protected by syncMu; why Sync can no longer promise anything

	shared    bool
	lockFd    int        // of a shared store's lock; -1
	dirMu     sync.Mutex // by whoever has or wants that lock; no other lock is taken under it
	busyUntil time.Time  // protected by dirMu: nobody tries before

	said  sync.Map // what logOnce has said
	count counters

	stop, stopped chan struct{} // nil without a periodic Sync
	reported      error         // the last error it logged; its goroutine's own
}

// An entry is an object that is open or being opened.
type entry struct {
	ready chan struct{} // closed when obj or err is set
	obj   *Object
	err   error
	refs  int    // protected by Store.mu
	name  string // its key in Store.objs; protected by Store.mu
}

// ID names a pending object.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// DataName returns the name, in the store's directory, of the file that holds
// the object's bytes: what is renamed over the stub of a file that is whole.
func (id ID) DataName() string { return id.name() + dataSuffix }

func (id ID) name() string { return "p" + id.String() }

// ParseID is the inverse of ID.String.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return id, fmt.Errorf("object id %q: %w", s, layers.ErrCorrupt)
	}
	return ID(b), nil
}

// OpenStore opens the store in the directory dirfd, which stays the caller's,
// and removes what crashes left of temporary files and cached objects. Pending
// objects are never removed but by Remove.
func OpenStore(dirfd int, cfg Config) (*Store, error) {
	s := &Store{log: cfg.Logger, now: cfg.Now, objs: map[string]*entry{}, shared: cfg.Shared, lockFd: -1}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.now == nil {
		s.now = time.Now
	}
	var err error
	if cfg.BootID != "" {
		copy(s.boot[:], cfg.BootID)
	} else if s.boot, err = readBootID(); err != nil {
		// A boot of its own: only what is covered counts later.
		s.log.Warn("extent store: no boot id", "err", err)
		rand.Read(s.boot[:])
	}
	if s.dir, err = sys.Reopen(dirfd, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return nil, fmt.Errorf("extent store: %w", err)
	}
	if err := s.SetLimit(cfg.Limit, cfg.Percent); err != nil {
		s.closeFds()
		return nil, fmt.Errorf("extent store: %w", err)
	}
	if s.shared {
		if s.lockFd, err = sys.Create(s.dir, lockName, unix.O_RDWR, 0o600); err == nil {
			err = s.tryLocks()
		}
	}
	if err == nil {
		err = s.loadEpochs()
	}
	if err == nil {
		err = s.sweep()
	}
	if err != nil {
		s.closeFds()
		return nil, fmt.Errorf("extent store: %w", err)
	}
	if cfg.SyncEvery >= 0 {
		every := cfg.SyncEvery
		if every == 0 {
			every = 10 * time.Second
		}
		s.stop, s.stopped = make(chan struct{}), make(chan struct{})
		go s.syncEvery(every)
		s.reclaimSoon() // counts
	}
	return s, nil
}

// Close makes everything durable and lets go of the directory. All objects must
// have been closed.
func (s *Store) Close() error {
	if s.stop != nil {
		close(s.stop)
		<-s.stopped
		s.rounds.Wait()
	}
	err := s.Sync()
	s.closeFds()
	return err
}

func (s *Store) closeFds() {
	unix.Close(s.dir)
	if s.lockFd >= 0 {
		unix.Close(s.lockFd)
	}
}

// Cached returns the object that caches src, a new and empty one if there is
// none. The caller closes it. Errors are those of the store's filesystem: the
// source can still be read without a cache (EFBIG: the source claims a size that
// does not fit here).
func (s *Store) Cached(src Source) (*Object, error) {
	if err := src.check(); err != nil {
		return nil, err
	}
	name := src.key()
	return s.get(name, func() (*Object, error) {
		unlock, err := s.lockDir()
		if err != nil {
			return nil, err
		}
		defer unlock()
		o, err := s.open(name)
		if err == nil && !o.src.same(&src) {
			o.closeFds()
			err = fmt.Errorf("cached object is of %q: %w", o.src.Path, layers.ErrCorrupt)
		}
		if err == nil && !o.sums {
			o.closeFds()
			err = fmt.Errorf("it was cached without checksums: %w", layers.ErrCorrupt)
		}
		if err != nil && o != nil && o.guest.Load() {
			err = errInUse
		}
		if err == nil || err != unix.ENOENT && !errors.Is(err, layers.ErrCorrupt) {
			return o, err
		}
		if err != unix.ENOENT {
			s.log.Warn("cached object is thrown away", "path", fmt.Sprintf("%q", src.Path), "err", err)
			if err := s.unlink(name); err != nil {
				return nil, err
			}
		}
		return s.create(name, src, false)
	})
}

// NewPending makes a pending object of which everything is missing. It is
// durable when NewPending returns.
func (s *Store) NewPending(src Source) (*Object, ID, error) {
	if err := src.check(); err != nil {
		return nil, ID{}, err
	}
	id := newID()
	o, err := s.get(id.name(), func() (*Object, error) { return s.create(id.name(), src, true) })
	return o, id, err
}

// Pending opens a pending object. ENOENT: there is none; layers.ErrCorrupt: it
// cannot be trusted, and stays as it is for somebody to look at.
func (s *Store) Pending(id ID) (*Object, error) {
	return s.get(id.name(), func() (*Object, error) {
		o, err := s.open(id.name())
		if err != nil {
			err = fmt.Errorf("pending object %s: %w", id, err)
		}
		return o, err
	})
}

// Pendings returns the IDs of all pending objects, damaged ones and the remains
// of unfinished operations included. Those that no stub names can be removed.
func (s *Store) Pendings() ([]ID, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var ids []ID
	seen := map[ID]bool{}
	for _, name := range names {
		base, suffix := splitName(name)
		if !strings.HasPrefix(base, "p") || suffix != dataSuffix && suffix != mapSuffix {
			continue
		}
		if id, err := ParseID(base[1:]); err == nil && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Remove removes a pending object. Who has it open can go on using it. Removing
// what is not there is no error.
func (s *Store) Remove(id ID) error {
	name := id.name()
	s.mu.Lock()
	e := s.objs[name]
	s.mu.Unlock()
	if e == nil {
		return s.unlink(name)
	}
	<-e.ready
	if e.err != nil {
		return s.unlink(name)
	}
	o := e.obj
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if err := s.unlink(name); err != nil {
		return err
	}
	o.name = "" // a compaction must not bring the map back
	s.rekey(o, "")
	return nil
}

// get returns the object name with one more reference, opening it with open if
// nobody has yet.
func (s *Store) get(name string, open func() (*Object, error)) (*Object, error) {
	s.mu.Lock()
	e := s.objs[name]
	if e != nil {
		e.refs++
		s.mu.Unlock()
		if <-e.ready; e.err != nil {
			return s.get(name, open) // whoever opened it wanted less, or evicted it
		}
		return e.obj, nil
	}
	e = &entry{ready: make(chan struct{}), refs: 1, name: name}
	s.objs[name] = e
	s.mu.Unlock()

	e.obj, e.err = open()
	if e.err != nil {
		e.obj = nil
		s.forget(name, e)
	} else {
		e.obj.entry = e
	}
	close(e.ready)
	return e.obj, e.err
}

// forget makes the next get of name open it anew.
func (s *Store) forget(name string, e *entry) {
	s.mu.Lock()
	if s.objs[name] == e {
		delete(s.objs, name)
	}
	s.mu.Unlock()
}

// noteProved remembers of an object that is closed that nobody needs to prove it
// when it is opened again: its map ends where it did. s.mu is held.
func (s *Store) noteProved(o *Object) {
	const most = 1 << 14 // who is forgotten is proved again
	name := o.entry.name
	delete(s.proved, name)
	if o.pieces.doubts > 0 || name == "" || o.torn || len(o.owed) > 0 {
		return
	}
	if s.proved == nil {
		s.proved = make(map[string]chain)
	}
	for other := range s.proved {
		if len(s.proved) < most {
			break
		}
		delete(s.proved, other)
	}
	s.proved[name] = o.chain
}

func (s *Store) provedUpTo(name string) chain {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proved[name]
}

// unlink removes both files of an object, as far as they exist, and the map
// first: data without a map is nothing.
func (s *Store) unlink(name string) error {
	for _, suffix := range []string{mapSuffix, dataSuffix} {
		if err := sys.Unlink(s.dir, name+suffix); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove %s: %w", name+suffix, err)
		}
	}
	return nil
}

// sweep removes temporary files, and cached objects of which half is missing.
func (s *Store) sweep() error {
	unlock, err := s.lockDir()
	if err != nil {
		return nil // whoever has it, it is not the time
	}
	defer unlock()
	names, err := s.names()
	if err != nil {
		return err
	}
	have := map[string]int{}
	for _, name := range names {
		base, suffix := splitName(name)
		if suffix == tmpSuffix {
			if err := s.sweepTmp(base); err != nil {
				return err
			}
		} else if strings.HasPrefix(base, "c") && suffix != "" {
			have[base]++
		}
	}
	for base, n := range have {
		if n == 1 {
			if err := s.unlink(base); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) names() ([]string, error) {
	fd, err := sys.OpenAt(s.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), "objects")
	defer d.Close()
	return d.Readdirnames(-1)
}

// splitName splits the name of one of our files; suffix is "" for others.
func splitName(name string) (base, suffix string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, ""
	}
	switch base, suffix = name[:i], name[i:]; suffix {
	case dataSuffix, mapSuffix, tmpSuffix:
		return base, suffix
	}
	return name, ""
}

func newID() (id ID) {
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// key is the name under which src is cached. Modes do not count: a chmod on the
// source leaves the content what it was.
func (s *Source) key() string {
	h := sha256.New()
	var b [8]byte
	num := func(v uint64) {
		binary.LittleEndian.PutUint64(b[:], v)
		h.Write(b[:])
	}
	num(uint64(len(s.LayerID)))
	io.WriteString(h, s.LayerID)
	num(uint64(len(s.Path)))
	io.WriteString(h, string(s.Path))
	num(uint64(s.Version.Size))
	num(uint64(s.Version.Mtime.Sec))
	num(uint64(s.Version.Mtime.Nsec))
	return "c" + hex.EncodeToString(h.Sum(nil)[:20])
}

// same reports whether s and t are the same content.
func (s *Source) same(t *Source) bool {
	return s.LayerID == t.LayerID && s.Path == t.Path && s.Version == t.Version
}

// logOnce logs what an object's owner is not told otherwise, once for each
// errno, and not for each of a thousand reads on a full disk.
func (s *Store) logOnce(err error, what string, p layers.Path) {
	var errno unix.Errno
	errors.As(err, &errno)
	if _, said := s.said.LoadOrStore(fmt.Sprint(what, errno), true); !said {
		s.log.Warn(what, "path", fmt.Sprintf("%q", p), "err", err)
	}
}
