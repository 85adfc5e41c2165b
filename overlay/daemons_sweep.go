package overlay

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

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
