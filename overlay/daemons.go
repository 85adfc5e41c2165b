package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// What migrate mode keeps in the layers, which other mounts, on this host and on
// others, use at the same time:
//
//	UPPER/.migratefs/id              which upper this is; every mount has it locked
//	UPPER/.migratefs/claims/ID       who brings up which lower file (package copyup)
//	UPPER/.migratefs/index/ID, u-INO hard-linked files that came up, see hardlink.go
//	UPPER/.migratefs/daemons/DAEMON/ one mount's work directory
//	UPPER/.migratefs/rename          a directory that is being renamed, see intent.go
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
