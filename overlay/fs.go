package overlay

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Reserved is the name at the root of any layer that belongs to migratefs: not
// found by lookup and not creatable.
const Reserved = ".migratefs"

// Mode says what a change does to the lowers.
type Mode int

const (
	// Overlay leaves lowers as they are: deletions become whiteouts.
	Overlay Mode = iota
	// Migrate moves: deletions and renames reach every layer, and a lower copy
	// goes once its successor is durable.
	Migrate
)

func (m Mode) String() string {
	if m == Migrate {
		return "migrate"
	}
	return "overlay"
}

// Lower is one layer below the upper, as its opener hands it over; the FS
// closes it.
type Lower struct {
	Layer layers.Layer
	// Changes says that names and contents below may change without us.
	Changes bool
	// OCI says that it holds whiteouts as OCI image layers have them.
	OCI bool
	// Seed are the names, in a lower on another host, that the mount is made for, with
	// the directories that lead there; nil: all of it.
	Seed []layers.Path
}

// Config says what is stacked, and how.
type Config struct {
	Mode   Mode
	Upper  *local.Layer        // nil: read-only
	Hosts  Hosts               // of migrate mode
	Probe  func(dir int) error // with Many: whether the upper is fit for it; dir is there, and empty
	Work   *os.File            // the work directory of overlay mode; nil without an upper
	Lowers []Lower             // highest first
	Format whiteout.Format

	Volatile      bool // no fsync in copy-up
	KeepLower     bool // migrate mode: lower copies stay while the upper has their names, then in the trash
	TrashDays     int  // migrate mode: what is removed from lowers lies in their trash for so long
	Lenient       bool // xattrs that the upper cannot hold stay behind, and the log says so
	NoAtime       bool // reading an upper file leaves its access time
	IDs           IDs
	AsCaller      bool // the layers decide about rights: see caller.go; no source among them
	NoPrefetch    bool // nothing is fetched from a source before somebody asks for it
	NoPassthrough bool // the kernel reads and writes upper files through us
	NoRedirect    bool // renaming a directory that lies below is EXDEV
	NoFollow      bool // a directory that was moved is EPERM where its redirect leads anywhere
	Restored      bool // directories are opened where they stood on another filesystem: see listing.foreign
	Metacopy      bool // what changes no data moves none, where the format allows it
	Fill          FillConfig
	Cache         CacheConfig
	EntryTimeout  *time.Duration
	AttrTimeout   *time.Duration
	NegTimeout    *time.Duration // of names that are not there; nil: EntryTimeout
	Log           *slog.Logger

	// gather is how long the removal of lower copies waits for more; negative: each goes
	// before its copy-up returns. Tests count changes.
	gather time.Duration
}

// forever is how long the kernel may believe us about layers that are ours alone.
const forever = 24 * time.Hour

// FS is the merged filesystem, served to the kernel by go-fuse. See the package
// comment for lock order and identity.
type FS struct {
	fuse.RawFileSystem // ENOSYS for what is not implemented

	cfg    Config
	log    *slog.Logger
	root   *node
	table  table
	upper  *layer   // nil: read-only
	lowers []*layer // highest first
	work   int      // descriptor, -1 without an upper
	index  int      // WORK/index, overlay mode: as the kernel has it, one name per hard-linked file that came up
	links  int      // WORK/links, UPPER/.migratefs/index in migrate mode: the same for files without handles, and what leads to and from them
	claims int      // UPPER/.migratefs/claims, where there are many hosts
	self   daemon   // migrate mode
	temps  int      // WORK/temps, with AsCaller
	stubs  int      // WORK/stubs: one name per pending file
	store  *extent.Store
	shared *extent.Store // of cached objects, in a directory that other mounts use, too, or in memory; nil without one
	copies copyup.Config
	backer backer // nil: no passthrough
	oci    bool   // a lower has OCI whiteouts
	super  bool   // requests can act with their callers' ids
	// closeTells: close(2) of an upper file can fail, as it does with a quota on NFS.
	closeTells bool
	xattrs     bool // the kernel says what a setxattr asks for besides (FUSE_SETXATTR_EXT)
	unopened   bool // the kernel reads directories without telling of an open; see listings.go

	entryTimeout time.Duration
	attrTimeout  time.Duration
	negTimeout   time.Duration

	tree     sync.RWMutex     // protects node.names of every node, and called
	called   map[uint64]*node // who has which name, by callHash; nil but with many hosts
	turns    *copyup.Claims   // what fs.claims is the directory of
	sweeper  *copyup.Sweeper  // of turns
	dirs     dirCache
	handles  handleTable
	listings listings
	flights  flights
	writes   writes

	// Of a directory that is renamed in several layers (rename_parts.go).
	dirMoves sync.Mutex   // protects promised: one rename of a directory at a time, with hosts=single
	promised bool         // there is an intent that is not ended
	removing sync.RWMutex // held while lower copies are removed; to write, while what they lie in moves
	window   window

	giveBack *time.Timer // see memory.go

	swaps swaps
	fill  fill

	ending ending

	unsynced  unsynced
	deadlocks deadlocks
	notify    notifier // nil: nobody is served yet

	complaints complaints
	losses     losses
	removals   removals
	ahead      ahead
	early      early
	meter      meter

	// strange: a layer is not the one that was mounted.
	strange atomic.Bool

	whiteoutMu sync.Mutex // making the shared whiteout

	timesMu [64]sync.Mutex // by directory: a name for it that is no change
}

// layer is one element of the stack.
type layer struct {
	layers.Layer
	index    int // 0 is the highest
	root     int // descriptor of the root, -1 unless local
	writable bool
	changes  bool
	passes   bool // the kernel may read and write its files by itself
	disk     bool // it lies on a disk of this host
	fsid     uint64
	name     string // what its files are called by, see daemons.go
	ident    string // migrate: its id
	dev      uint64 // of the root directory
	oci      bool

	// pairs: the names of one inode are one file although it lies on another host.
	// Nothing is ever brought up from there: a copy would have one of them only.
	pairs   bool
	handles handles

	leave *leaving      // what Layer is, of a lower on another host; nil of local ones
	seed  []layers.Path // Lower.Seed; immutable

	trash int // migrate: LOWER/.migratefs/trash, -1 until needed
	marks int // migrate: LOWER/.migratefs/hl, -1 until needed
}

func (l *layer) isLocal() bool { return l.root >= 0 }

// New stacks the layers. It sweeps what a crash left in the work directory and
// finishes what it interrupted.
func New(ctx context.Context, cfg Config) (*FS, error) {
	fs := newFS(cfg)
	if err := fs.start(ctx); err != nil {
		_ = fs.closeOwn()
		return nil, err
	}
	return fs, nil
}

// newFS is New without a look at any layer.
func newFS(cfg Config) *FS {
	fs := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		cfg:           cfg,
		log:           cfg.Log,
		work:          -1, index: -1, links: -1, stubs: -1, temps: -1, claims: -1,
		self:   daemon{dirs: -1, work: -1, alive: -1},
		copies: copyup.Config{Volatile: cfg.Volatile, Owner: os.Geteuid() == 0},
		super:  os.Geteuid() == 0,
	}
	if fs.log == nil {
		fs.log = slog.Default()
	}
	if cfg.Format == whiteout.User {
		fs.cfg.NoRedirect, fs.cfg.NoFollow = true, true // as the kernel's overlayfs
	}
	fs.copies.Lenient, fs.copies.LeftOut = cfg.Lenient, fs.leftOut
	fs.removals.init(cfg.gather)
	fs.meter.init()
	fs.fill.demand.meter = &fs.meter
	fs.ahead.init(cfg.NoPrefetch)
	fs.giveBack = newGiveBack()
	fs.dirs.init()
	fs.listings.init()
	fs.table.init()
	fs.stack()
	fs.ending.init(fs)
	fs.timeouts()
	return fs
}

func (fs *FS) start(ctx context.Context) error {
	if err := fs.openCache(); err != nil {
		return err
	}
	if fs.upper == nil {
		fs.ahead.into(fs.cache())
		return fs.openRoot(ctx)
	}
	if err := fs.openWork(); err != nil {
		return err
	}
	if err := fs.openTouched(); err != nil {
		return err
	}
	fs.ahead.into(fs.cache())
	if err := fs.findHandles(); err != nil {
		return err
	}
	if err := fs.openRoot(ctx); err != nil {
		return err
	}
	fs.warnOfACLs()
	if err := fs.recover(ctx); err != nil {
		return err
	}
	if fs.cfg.Mode == Migrate {
		fs.live()
	}
	return fs.startFill()
}

func (fs *FS) stack() {
	if fs.cfg.Upper != nil {
		fs.upper = &layer{Layer: fs.cfg.Upper, root: fs.cfg.Upper.Root(), writable: true, handles: handles{fd: -1}, trash: -1, marks: -1}
		var st unix.Stat_t
		if unix.Fstat(fs.upper.root, &st) == nil {
			fs.upper.dev = st.Dev
		}
		fs.upper.disk = fs.upper.onDisk()
		fs.closeTells = !fs.upper.disk
	}
	for i, low := range fs.cfg.Lowers {
		l := &layer{Layer: low.Layer, index: i + 1, root: -1, changes: low.Changes, oci: low.OCI && fs.cfg.Mode == Overlay, pairs: fs.upper == nil, handles: handles{fd: -1}, trash: -1, marks: -1}
		if d, ok := low.Layer.(interface{ Root() int }); ok {
			l.root = d.Root()
			l.writable = fs.cfg.Mode == Migrate
			var st unix.Stat_t
			if unix.Fstat(l.root, &st) == nil {
				l.dev = st.Dev
			}
			if st, err := local.StatfsFd(l.root); err == nil {
				l.fsid = st.Fsid
				l.name = strconv.FormatUint(st.Fsid, 16)
			}
			l.disk = l.onDisk()
		} else {
			l.leave, l.Layer = newLeaving(low.Layer)
			l.seed = low.Seed
		}
		fs.oci = fs.oci || l.oci
		fs.lowers = append(fs.lowers, l)
	}
}

func (fs *FS) timeouts() {
	fs.entryTimeout, fs.attrTimeout = forever, forever
	for _, l := range fs.lowers {
		if l.changes {
			fs.entryTimeout, fs.attrTimeout = time.Second, time.Second
		}
	}
	if fs.cfg.Mode == Migrate {
		fs.entryTimeout, fs.attrTimeout = 0, time.Second
	}
	if fs.cfg.AsCaller {
		fs.entryTimeout, fs.attrTimeout, fs.negTimeout = 0, 0, 0
		return
	}
	if fs.cfg.EntryTimeout != nil {
		fs.entryTimeout = *fs.cfg.EntryTimeout
	}
	if fs.cfg.AttrTimeout != nil {
		fs.attrTimeout = *fs.cfg.AttrTimeout
	}
	fs.negTimeout = fs.entryTimeout
	if fs.cfg.NegTimeout != nil {
		fs.negTimeout = *fs.cfg.NegTimeout
	}
}

// openWork opens, and where needed makes, what the work directory holds.
func (fs *FS) openWork() (err error) {
	if fs.cfg.Mode == Migrate {
		if err := fs.openPrivate(); err != nil {
			return err
		}
		if fs.many() {
			fs.turns = &copyup.Claims{Dir: fs.claims, Who: fs.self.name, Daemon: fs.asDaemon, Stale: copyup.StaleAfter}
			fs.turns.Published = fs.indexClaim
			fs.sweeper = fs.turns.Sweeper()
			fs.called = make(map[uint64]*node)
		}
		return fs.openTemps()
	}
	fs.work = int(fs.cfg.Work.Fd())
	if err := fs.beginLeft(); err != nil {
		return err
	}
	if fs.index, err = sys.MkdirOpen(fs.work, "index"); err != nil {
		return err
	}
	if fs.links, err = sys.MkdirOpen(fs.work, "links"); err != nil {
		return err
	}
	if fs.stubs, err = sys.MkdirOpen(fs.work, "stubs"); err != nil {
		return err
	}
	if err := fs.openTemps(); err != nil {
		return err
	}
	objects, err := sys.MkdirOpen(fs.work, "objects")
	if err != nil {
		return err
	}
	defer unix.Close(objects)
	fs.store, err = extent.OpenStore(objects, fs.storeConfig())
	return err
}

func (fs *FS) openRoot(ctx context.Context) error {
	f, err := fs.lookupRoot(ctx)
	if err != nil {
		return err
	}
	fs.root = fs.table.adopt(fs, f, nil, "")
	fs.root.id = fuse.FUSE_ROOT_ID
	fs.table.setRoot(fs.root)
	return nil
}

// ReadOnly reports whether the mount has no upper.
func (fs *FS) ReadOnly() bool { return fs.upper == nil }

// Alone reports whether contents change through this mount only: what the kernel
// has read it may keep. Else it is to drop what it has of a file when it is opened
// anew and when size or mtime have changed.
func (fs *FS) Alone() bool { return fs.cfg.Mode == Overlay && fs.attrTimeout == forever }

// Timeouts returns how long the kernel may cache names and attributes.
func (fs *FS) Timeouts() (entry, attr time.Duration) { return fs.entryTimeout, fs.attrTimeout }

// LocalOnly reports whether every layer has inodes: what a symlink holds then never
// changes, because another symlink is another inode and another node.
func (fs *FS) LocalOnly() bool {
	return !slices.ContainsFunc(fs.lowers, func(l *layer) bool { return !l.isLocal() })
}

// String implements fuse.RawFileSystem.
func (fs *FS) String() string { return "migratefs" }

// Close makes what is pending durable and lets go of the layers. Nothing may be
// served any more.
func (fs *FS) Close() error {
	errs := []error{fs.closeOwn()}
	for _, l := range fs.lowers {
		errs = append(errs, l.Close())
	}
	if fs.upper != nil {
		errs = append(errs, fs.upper.Close())
	}
	return errors.Join(errs...)
}

// closeOwn is Close but for the layers, which a New that fails leaves to its
// caller.
func (fs *FS) closeOwn() (err error) {
	fs.ending.close()
	fs.ahead.close()
	fs.fill.close()
	fs.endRemovals()
	fs.giveBack.Stop()
	fs.listings.timer.Stop()
	fs.dirs.closeAll()
	if fs.shared != nil {
		err = fs.shared.Close()
	}
	if fs.store != nil {
		err = errors.Join(err, fs.store.Close())
	}
	fs.self.leave()
	own := []int{fs.index, fs.links, fs.stubs, fs.temps, fs.claims}
	for _, l := range fs.lowers {
		own = append(own, l.trash, l.marks, l.handles.fd)
	}
	if fs.upper != nil {
		own = append(own, fs.upper.handles.fd)
	}
	for _, fd := range own {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return err
}
