package overlay

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// What migrate mode keeps in the layers, which other mounts, on this host and on
// others, use at the same time:
//
//	UPPER/.migratefs/id              which upper this is; every mount has it locked
//	UPPER/.migratefs/claims/ID       who brings up which lower file (package copyup)
//	UPPER/.migratefs/index/ID, u-INO hard-linked files that came up, see hardlink.go
//	UPPER/.migratefs/daemons/DAEMON/ one mount's work directory
//	LOWER/.migratefs/id              which lower this is
//	LOWER/.migratefs/trash, hl       see migrate.go
//
// A lower file is called ID everywhere: the first 16 digits of the lower's id, the
// inode number and the birth time. Filesystem ids would not do: on xfs that is a
// device number, which changes, and NFS has none.

// Hosts says who else uses the layers of a mount in migrate mode.
type Hosts int

const (
	// Single is nobody.
	Single Hosts = iota
	// Many are other mounts, on this host and on others, whenever they like.
	Many
)

func (h Hosts) String() string {
	if h == Many {
		return "many"
	}
	return "single"
}

// many reports whether other mounts may change the layers while we do.
func (fs *FS) many() bool { return fs.cfg.Mode == Migrate && fs.cfg.Hosts == Many && fs.upper != nil }

const (
	idName   = "id"
	idDigits = 32
	// shortID is how much of a lower's id names of files have.
	shortID = 16

	aliveName = "alive"
	// heartbeat is how often a daemon shows that it lives.
	heartbeat = 10 * time.Second
	// lifeless is how long it may fail to, before mounts on other hosts take what it
	// left away. That is no more than tidiness: what is taken from a daemon that
	// lives after all makes an operation of it start again, or fail.
	lifeless = time.Hour
)

// Identify returns what the layer whose root directory is root calls itself, which
// is made up when it is mounted in migrate mode for the first time, and never
// changes. f is open for locking.
func Identify(root int, anyOwner bool) (id string, f *os.File, err error) {
	dir, err := openReserved(root, anyOwner)
	if err != nil {
		return "", nil, err
	}
	defer unix.Close(dir)
	for range 8 {
		fd, err := sys.OpenAt(dir, idName, unix.O_RDWR)
		if err == nil {
			f = os.NewFile(uintptr(fd), Reserved+"/"+idName)
			if id, err = readID(dir, f); err != nil {
				f.Close()
				return "", nil, err
			}
			return id, f, nil
		}
		if err != unix.ENOENT {
			return "", nil, fmt.Errorf("%s/%s: %w", Reserved, idName, err)
		}
		// ENOENT: somebody swept what was to become the id. Once more.
		if err := makeID(dir); err != nil && err != unix.ENOENT && err != unix.EEXIST {
			return "", nil, fmt.Errorf("%s/%s: %w", Reserved, idName, err)
		}
		if err := ignoreUnsupported(copyup.SyncDir(root, copyup.Config{})); err != nil {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("%s/%s cannot be made: %w", Reserved, idName, unix.EBUSY)
}

// openReserved opens the directory Reserved in a layer, which is made if needed: no
// change of the layer's root, whose times it leaves. A directory that others may
// write to leads nowhere.
func openReserved(root int, anyOwner bool) (int, error) {
	var before, after unix.Statx_t
	if err := sys.Statx(root, "", &before); err != nil {
		return -1, err
	}
	dir, err := sys.MkdirOpen(root, Reserved)
	if err != nil {
		return -1, err
	}
	if sys.Statx(root, "", &after) == nil && after.Mtime != before.Mtime {
		_ = copyup.RestoreTimes(root, ptr(local.AttrOf(&before)))
	}
	if err := isOurs(dir, anyOwner); err != nil {
		unix.Close(dir)
		return -1, err
	}
	return dir, nil
}

// isOurs returns an error unless the directory dir, which is Reserved or in it, can
// have been made by us, and changed by nobody else.
func isOurs(dir int, anyOwner bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() && !anyOwner || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s must belong to this user and be closed to others: chown and chmod 700 it: %w", Reserved, unix.EPERM)
	}
	return nil
}

func readID(dir int, f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	if st.Nlink > 1 {
		_ = copyup.Sweep(dir) // who made it died before it could take its first name away
	}
	b := make([]byte, idDigits+1)
	n, err := sys.Pread(int(f.Fd()), b, 0)
	if err != nil {
		return "", err
	}
	if _, err := hex.DecodeString(string(b[:n])); err != nil || n != idDigits {
		return "", fmt.Errorf("%s/%s does not hold %d hexadecimal digits: %w", Reserved, idName, idDigits, layers.ErrCorrupt)
	}
	return string(b[:n]), nil
}

// makeID gives a layer an id, unless it has one by then.
func makeID(dir int) error {
	_ = copyup.Sweep(dir)
	temp := copyup.TempName()
	fd, err := sys.Create(dir, temp, unix.O_WRONLY|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer func() { _ = sys.Unlink(dir, temp) }()
	if _, err := sys.Pwrite(fd, []byte(randomHex(idDigits)), 0); err != nil {
		return err
	}
	if err := sys.Fsync(fd); err != nil {
		return err
	}
	if err := sys.Link(dir, temp, dir, idName); err != nil {
		return err
	}
	return ignoreUnsupported(sys.Fsync(dir))
}

// ignoreUnsupported is for what not every filesystem has, and none needs who has not.
func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func randomHex(digits int) string {
	b := make([]byte, digits/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// daemon is what a mount in migrate mode has of its own in the upper.
type daemon struct {
	name  string // HOST-RANDOM
	dirs  int    // UPPER/.migratefs/daemons
	work  int    // DAEMON in it
	alive int    // its file alive, locked
	note  string // what that holds: how it treats what leaves a lower
	upper string // the upper's id

	origins  bool // the upper has room for them
	homeless bool // its directory is gone, and that was said
	compared bool // what others note was compared with what it does

	stop  chan struct{}
	ended chan struct{}
}

// openPrivate opens, and where needed makes, what migrate mode keeps in the layers.
func (fs *FS) openPrivate() error {
	id, f, err := Identify(fs.upper.root, fs.cfg.AsCaller)
	if err != nil {
		return fmt.Errorf("upper %s: %w", fs.upper.ID(), err)
	}
	f.Close()
	for _, l := range fs.lowers {
		if err := fs.nameLower(l); err != nil {
			return fmt.Errorf("lower %s: %w", l.ID(), err)
		}
	}
	dir, err := openReserved(fs.upper.root, fs.cfg.AsCaller)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if fs.links, err = sys.MkdirOpen(dir, "index"); err != nil {
		return err
	}
	if fs.many() {
		if fs.claims, err = sys.MkdirOpen(dir, "claims"); err != nil {
			return err
		}
	}
	fs.self.upper = id
	if fs.self.dirs, err = sys.MkdirOpen(dir, "daemons"); err != nil {
		return err
	}
	fs.self.note = fmt.Sprintf("keep_lower=%t trash_days=%d\n", fs.cfg.KeepLower, fs.cfg.TrashDays)
	if err := fs.self.settleIn(); err != nil {
		return fmt.Errorf("upper %s: %w", fs.upper.ID(), err)
	}
	if fs.many() && fs.cfg.Probe != nil {
		if err := fs.cfg.Probe(fs.self.work); err != nil {
			return err
		}
	}
	fs.work = fs.self.work
	fs.self.origins = sys.Setxattr(fs.self.alive, "", copyup.XattrOrigin, []byte(fs.self.name), 0) == nil
	return nil
}

// nameLower finds what the files of a lower are called by. One mount alone can do
// with the filesystem's id where it has no rights to leave one.
func (fs *FS) nameLower(l *layer) error {
	if !l.isLocal() {
		return nil
	}
	id, f, err := Identify(l.root, fs.cfg.AsCaller)
	if err == nil {
		f.Close()
		l.name, l.ident = id[:shortID], id
		return nil
	}
	denied := errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)
	if fs.many() || !denied {
		return err
	}
	l.name = fmt.Sprintf("%0*x", shortID, l.fsid)
	return nil
}

// settleIn makes the daemon's own directory. Who sweeps it before it is locked
// takes it for one that was left behind; then another is made.
func (d *daemon) settleIn() error {
	for range 8 {
		d.name = hostID() + "-" + randomHex(16)
		err := sys.Mkdir(d.dirs, d.name, 0o700)
		if err == nil || err == unix.EEXIST { // NFS repeats requests
			d.work, err = sys.OpenAt(d.dirs, d.name, unix.O_RDONLY|unix.O_DIRECTORY)
		}
		if err == nil {
			d.alive, err = sys.Create(d.work, aliveName, unix.O_RDWR|unix.O_EXCL, 0o600)
		}
		if err != nil && err != unix.ENOENT {
			return err
		}
		if err == nil && d.lockAlive() {
			_, _ = sys.Pwrite(d.alive, []byte(d.note), 0) // others do without
			return nil
		}
		d.closeFDs()
	}
	return unix.EBUSY
}

// lockAlive locks alive where the filesystem has locks; false if it was swept.
func (d *daemon) lockAlive() bool {
	if err := sys.Flock(d.alive, unix.LOCK_EX); errors.Is(err, unix.EWOULDBLOCK) {
		return false
	}
	var ours, is unix.Stat_t
	return unix.Fstat(d.alive, &ours) == nil && ours.Nlink > 0 &&
		unix.Fstatat(d.dirs, d.name+"/"+aliveName, &is, unix.AT_SYMLINK_NOFOLLOW) == nil && is.Ino == ours.Ino
}

func (d *daemon) closeFDs() {
	for _, fd := range []*int{&d.alive, &d.work} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// hostID tells hosts apart. Hosts that boot one image may share their machine id,
// so their names count too.
func hostID() string {
	machine, _ := os.ReadFile("/etc/machine-id")
	name, _ := os.Hostname()
	sum := sha256.Sum256([]byte("migratefs host\x00" + string(machine) + "\x00" + name))
	return hex.EncodeToString(sum[:8])
}

// live shows that the daemon lives until it ends.
func (fs *FS) live() {
	d := &fs.self
	d.stop, d.ended = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(d.ended)
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		swept, expired := time.Now(), time.Time{}
		for ticks := 1; ; ticks = (ticks + 1) % int(lifeless/heartbeat) {
			if now := time.Now(); now.Sub(expired) > expiry {
				expired = now
				fs.expireNow(now)
			}
			select {
			case <-d.stop:
				return
			case <-tick.C:
			}
			fs.beat()
			if fs.many() && ticks <= 2 {
				fs.sweepClaims(context.Background())
			}
			if time.Since(swept) > lifeless {
				swept = time.Now()
				fs.sweepDaemons(context.Background())
			}
		}
	}()
}

func (fs *FS) beat() {
	_ = sys.BeatAt(fs.self.alive, "")
	err := fs.settleAnew()
	if err != nil && !fs.self.homeless {
		fs.log.Error("our work directory is gone, and no other can be made: no directory comes up until one can", "cause", err)
	}
	fs.self.homeless = err != nil
	fs.sameLayers()
}

// settleAnew gets the daemon another directory when its own was swept, as after a
// sleep of hours. What is in use stays so: the descriptors have the same numbers.
func (fs *FS) settleAnew() error {
	d := &fs.self
	var st unix.Stat_t
	if unix.Fstatat(d.dirs, d.name+"/"+aliveName, &st, unix.AT_SYMLINK_NOFOLLOW) != unix.ENOENT {
		return nil
	}
	anew := daemon{dirs: d.dirs, work: -1, alive: -1, note: d.note}
	defer anew.closeFDs()
	if err := anew.settleIn(); err != nil {
		return err
	}
	temps, err := fs.openTempsIn(anew.work)
	if err != nil {
		return err
	}
	for _, fd := range [][2]int{{anew.alive, d.alive}, {temps, fs.temps}, {anew.work, d.work}} {
		if fd[0] >= 0 && err == nil {
			err = unix.Dup3(fd[0], fd[1], unix.O_CLOEXEC)
		}
	}
	if temps >= 0 {
		unix.Close(temps)
	}
	if err == nil {
		d.name = anew.name
		fs.log.Warn("our work directory was swept by others, and is another now: directories that came up meanwhile have failed", "directory", d.name)
	}
	return err
}

// sameLayers notices that a layer is another one than at the mount, as after a
// filesystem was made anew under a server: from then on nothing moves.
func (fs *FS) sameLayers() {
	for _, l := range append([]*layer{fs.upper}, fs.lowers...) {
		want := l.ident
		if l == fs.upper {
			want = fs.self.upper
		}
		if want == "" {
			continue
		}
		is, err := idOfLayer(l.root)
		if err != nil || is == want {
			continue // what cannot be read now says nothing
		}
		if !fs.strange.Swap(true) {
			fs.log.Error("a layer is not the one that was mounted: nothing is moved any more; unmount and look", "layer", l.ID(), "was", want, "is", is)
		}
	}
}

func idOfLayer(root int) (string, error) {
	fd, err := sys.OpenBeneath(root, Reserved+"/"+idName, unix.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO is no id, and is not waited for
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, idDigits)
	n, err := sys.Pread(fd, b, 0)
	return string(b[:n]), err
}

// sweepDaemons takes away what daemons that died have left: those of this host when
// their lock is free, others' when they have shown no life for long, by the clock
// of the filesystem.
func (fs *FS) sweepDaemons(ctx context.Context) {
	d := &fs.self
	entries, err := local.ReadDirAt(ctx, d.dirs)
	if err != nil {
		fs.log.Warn("leftovers of other daemons not swept", "cause", err)
		return
	}
	_ = sys.BeatAt(d.alive, "")
	var now unix.Stat_t
	if err := unix.Fstat(d.alive, &now); err != nil {
		return
	}
	for _, e := range entries {
		if e.Name == d.name {
			continue
		}
		d.sweep(e.Name, now.Mtim)
		if note := d.noteOf(e.Name); note != "" && note != d.note && !d.compared {
			d.compared = true // of a thousand others one will do
			fs.log.Warn("another mount of this upper treats what leaves the lowers otherwise: give all the same keep_lower and trash_days", "ours", strings.TrimSpace(d.note), "theirs", strings.TrimSpace(note), "daemon", e.Name)
		}
	}
	d.compared = true
}

// noteOf is what the daemon of that name says of itself; empty if it is not there.
func (d *daemon) noteOf(name string) string {
	fd, err := sys.OpenBeneath(d.dirs, name+"/"+aliveName, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := sys.Pread(fd, b, 0)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func (d *daemon) sweep(name string, now unix.Timespec) {
	dir, err := sys.OpenAt(d.dirs, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	alive, err := sys.OpenAt(dir, aliveName, unix.O_RDWR)
	if err != nil {
		if strings.HasSuffix(name, goneSuffix) {
			d.clear(dir)
		}
		_ = sys.Rmdir(d.dirs, name) // it is empty if it was just made, or all but swept
		return
	}
	gone := name
	if !strings.HasSuffix(name, goneSuffix) {
		gone += goneSuffix
	}
	dead := isDead(name, alive, now) && (gone == name || sys.Rename(d.dirs, name, d.dirs, gone, 0) == nil)
	unix.Close(alive) // before it is removed: on NFS what is open keeps a name
	if dead {
		d.clear(dir)
		_ = sys.Unlink(dir, aliveName)
		_ = sys.Rmdir(d.dirs, gone)
	}
}

// goneSuffix marks what is being swept. Who settles in there sees that its name is
// another's, or nobody's.
const goneSuffix = ".gone"

// isDead reports whether the daemon whose file alive is open is not there any more,
// and has it locked then.
func isDead(name string, alive int, now unix.Timespec) bool {
	var st unix.Stat_t
	if unix.Fstat(alive, &st) != nil {
		return false
	}
	old := time.Duration(now.Nano()-st.Mtim.Nano()) > lifeless
	err := sys.Flock(alive, unix.LOCK_EX)
	return !errors.Is(err, unix.EWOULDBLOCK) && (old || err == nil && strings.HasPrefix(name, hostID()+"-"))
}

// clear removes all but alive, which goes last: without it nobody would look.
func (d *daemon) clear(dir int) {
	entries, err := local.ReadDirAt(context.Background(), dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Name != aliveName {
			copyup.RemoveTemp(dir, e.Name)
		}
	}
}

// leave ends what settleIn began.
func (d *daemon) leave() {
	if d.stop != nil {
		close(d.stop)
		<-d.ended
	}
	if d.alive >= 0 {
		d.clear(d.work)
		unix.Close(d.alive) // first: on NFS what is open keeps a name
		d.alive = -1
		_ = sys.Unlink(d.work, aliveName)
		_ = sys.Rmdir(d.dirs, d.name)
	}
	d.closeFDs()
	if d.dirs >= 0 {
		unix.Close(d.dirs)
	}
}
