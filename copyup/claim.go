package copyup

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

// Several hosts work on one lower file by turns: who does something to it that
// others must not do at the same time has its claim, a name in a directory of the
// upper that is made of the file's Origin and exists once.
//
// Two kinds of things have that name. A copy is the very file that is made: what
// is linked into place is the inode, by its descriptor, so that unlinking the
// claim revokes it, since an inode without names cannot be linked. A lock is a
// symlink; it says who has it, and is for what takes no time.
//
// Anyone may unlink any claim at any time, and nothing may break: so nobody has to
// know whether an owner is dead. Who finds a claim that does not change breaks it;
// an owner that lives shows it.

// ErrRevoked: the claim that was to be published is not there any more.
var ErrRevoked = errors.New("the claim was revoked")

// Claims is the directory of claims.
type Claims struct {
	Dir int
	Who string // what locks say
	// Daemon runs f with the daemon's rights: the claims are its own, also where what
	// they are for is done with others'. Nil: those are what there is.
	Daemon func(f func() error) error
	// Stale is how long a claim may be without change, by our own clock, before
	// it is broken.
	Stale time.Duration
	// Published, if not nil, is called before the claim of that name, which is a copy
	// that was published, is taken away from who has it.
	Published func(name string) error

	locks atomic.Uint64
}

// StaleAfter is what Claims.Stale is but in tests.
const StaleAfter = 10 * time.Second

// beatAfter is how often an owner shows that it lives.
const beatAfter = 2 * time.Second

// Kind is what a claim is for.
type Kind int

const (
	// ForCopy is a copy that will be published. It waits for who has a claim.
	ForCopy Kind = iota
	// Lock waits for who has a claim.
	Lock
	// Revoke is a lock that revokes a copy and waits for a lock.
	Revoke
)

// Claim is what we have until Release.
type Claim struct {
	Fd int // of a copy, open for reading and writing; -1 of a lock

	c    *Claims
	name string
	who  string // of a lock: what its symlink holds, like no other
	made time.Time

	mu    sync.Mutex
	beat  *time.Timer // nil: not any more
	ended bool
}

// Take makes the claim of o as soon as it can be had. Between looks at somebody
// else's, idle runs; an error of it ends the waiting and is returned.
func (c *Claims) Take(ctx context.Context, o Origin, kind Kind, idle func() error) (*Claim, error) {
	var w watch
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		l, err := c.try(o, kind)
		if !errors.Is(err, unix.EEXIST) {
			return l, err
		}
		switch over, err := w.over(c, string(o), kind); {
		case err != nil:
			return nil, err
		case over:
			pause = time.Millisecond
			continue
		}
		if idle != nil {
			if err := idle(); err != nil {
				return nil, err
			}
		}
		t := time.NewTimer(min(pause, max(c.Stale/2, time.Millisecond)))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

// try makes the claim of o; EEXIST if somebody has one.
func (c *Claims) try(o Origin, kind Kind) (l *Claim, err error) {
	l = &Claim{c: c, name: string(o), Fd: -1, made: time.Now()}
	if kind == ForCopy {
		l.Fd, err = sys.Create(c.Dir, l.name, unix.O_RDWR|unix.O_EXCL, 0o600)
	} else {
		l.who = c.Who + "." + strconv.FormatUint(c.locks.Add(1), 10)
		err = sys.Symlink(l.who, c.Dir, l.name)
		if errors.Is(err, unix.EEXIST) {
			// NFS repeats requests: it may be ours.
			if who, rerr := sys.Readlink(c.Dir, l.name); rerr == nil && who == l.who {
				err = nil
			}
		}
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beat = time.AfterFunc(beatAfter, l.showLife)
	return l, nil
}

// watch is what is seen of somebody else's claim, and since when.
type watch struct {
	seen  unix.Statx_t
	since time.Time
}

// over looks at the claim of that name and breaks it if it has not changed for
// long, or may be revoked. It reports whether it is gone.
func (w *watch) over(c *Claims, name string, kind Kind) (bool, error) {
	var now unix.Statx_t
	err := sys.StatxNow(c.Dir, name, &now)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	copies := now.Mode&unix.S_IFMT == unix.S_IFREG
	switch {
	case kind == Revoke && copies:
	case w.since.IsZero() || !same(&now, &w.seen):
		w.seen, w.since = now, time.Now()
		return false, nil
	case time.Since(w.since) < c.Stale:
		return false, nil
	}
	if err := c.takeAway(name, &now); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, err
	}
	*w = watch{}
	return true, nil
}

func (c *Claims) takeAway(name string, stx *unix.Statx_t) error {
	if isPublished(stx) && c.Published != nil {
		if err := c.Published(name); err != nil {
			return err
		}
	}
	if stx.Mode&unix.S_IFMT == unix.S_IFLNK && !strings.HasPrefix(name, nodePrefix) {
		if err := sys.Unlink(c.Dir, nodePrefix+name); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return sys.Unlink(c.Dir, name)
}

func isPublished(stx *unix.Statx_t) bool {
	return stx.Mode&unix.S_IFMT == unix.S_IFREG && stx.Nlink > 1
}

func same(a, b *unix.Statx_t) bool {
	return a.Ino == b.Ino && a.Size == b.Size && a.Blocks == b.Blocks && a.Mtime == b.Mtime && a.Ctime == b.Ctime
}

// showLife changes the claim so that nobody breaks it.
func (l *Claim) showLife() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beat == nil {
		return
	}
	if l.Fd >= 0 {
		_ = sys.BeatAt(l.Fd, "")
	} else {
		_ = sys.BeatAt(l.c.Dir, l.name)
	}
	l.beat.Reset(beatAfter)
}

// quiet ends what showLife does: the file gets its own times now, and what is
// still to be done takes no time.
func (l *Claim) quiet() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beat != nil {
		l.beat.Stop()
		l.beat = nil
	}
}

// quickSync is how much data a sync is done with long before a claim is stale.
const quickSync = 4 << 20

// isSlow reports whether the owner has had to show life, or will have to before
// size bytes are durable.
func (l *Claim) isSlow(size int64) bool {
	return size > quickSync || time.Since(l.made) > beatAfter/2
}

// Release gives the claim, if there is one, up; once is enough. The descriptor of a
// copy, which must be open yet, stays so.
func (l *Claim) Release() {
	if l == nil {
		return
	}
	l.quiet()
	l.mu.Lock()
	ended := l.ended
	l.ended = true
	l.mu.Unlock()
	// The name may be another's after a while: taking that away would harm nobody, but
	// let in a third. Of a lock that is young that is too rare to look.
	_ = l.c.asDaemon(func() error {
		young := l.Fd < 0 && time.Since(l.made) < l.c.Stale
		if ended || !young && !l.held() {
			return nil
		}
		return sys.Unlink(l.c.Dir, l.name)
	})
}

func (c *Claims) asDaemon(f func() error) error {
	if c.Daemon == nil {
		return f()
	}
	return c.Daemon(f)
}

// Held reports whether the claim, if there is one, was ours all the time until now.
func (l *Claim) Held() (held bool) {
	if l == nil {
		return true
	}
	_ = l.c.asDaemon(func() error { held = l.held(); return nil })
	return held
}

// Kept is Held for who has changed the file: if the claim was broken, it revokes what
// others have made of the file since and have not published yet. What they publish later
// is made of what is there now.
func (l *Claim) Kept() bool {
	if l.Held() {
		return true
	}
	_ = l.c.asDaemon(func() error {
		var now unix.Statx_t
		if err := sys.StatxNow(l.c.Dir, l.name, &now); err != nil {
			return err
		}
		return l.c.takeAway(l.name, &now)
	})
	return false
}

func (l *Claim) held() bool {
	var name, fd unix.Statx_t
	if l.Fd < 0 {
		// However young it is: who found the claim before it stale may have been held up
		// before unlinking that, and have unlinked ours.
		if sys.StatxNow(l.c.Dir, l.name, &name) != nil {
			return false
		}
		who, err := sys.Readlink(l.c.Dir, l.name)
		return err == nil && who == l.who
	}
	return sys.Statx(l.c.Dir, l.name, &name) == nil && sys.Statx(l.Fd, "", &fd) == nil && name.Ino == fd.Ino
}

// publish gives the inode of a copy the name target in dir. ErrRevoked means that
// the claim is gone; EEXIST that the name is taken, by another file.
func (l *Claim) publish(dir int, target string) error {
	err := sys.LinkFd(l.Fd, dir, target)
	if errors.Is(err, unix.EXDEV) && l.joinProject(dir) == nil {
		err = sys.LinkFd(l.Fd, dir, target)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		var stx unix.Statx_t
		if sys.Statx(l.Fd, "", &stx) != nil || stx.Nlink == 0 {
			return ErrRevoked
		}
	case errors.Is(err, unix.EEXIST) && isSame(l.Fd, dir, target):
		return nil // NFS repeats requests
	}
	return err
}

// nodePrefix begins the name of a copy that has no data, which is made beside a lock:
// who breaks the lock unlinks it, so that it cannot be linked.
const nodePrefix = "n-"

func (l *Claim) nodeName() (string, error) {
	temp := nodePrefix + l.name
	// Of somebody who had the lock before us, and is dead or will find it broken.
	if err := sys.Unlink(l.c.Dir, temp); err != nil && !errors.Is(err, unix.ENOENT) {
		return "", err
	}
	return temp, nil
}

// publishNode is publish for what is made beside a lock.
func (l *Claim) publishNode(temp string, at Place) error {
	fd, err := sys.OpenAt(l.c.Dir, temp, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return ErrRevoked
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// What was made after the lock was broken, nobody has unlinked.
	if !l.Held() {
		return ErrRevoked
	}
	node := Claim{Fd: fd, c: l.c, name: temp}
	if err := node.publish(at.Dir, at.Name); err != nil {
		return err
	}
	_ = sys.Unlink(l.c.Dir, temp)
	return nil
}

// isSame reports whether name in dir is the file fd.
func isSame(fd, dir int, name string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Fstatat(dir, name, &b, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		a.Dev == b.Dev && a.Ino == b.Ino
}

// joinProject gives the copy the project id of the directory dir: where that hands
// its own down, a file of another project cannot be linked into it.
func (l *Claim) joinProject(dir int) error {
	fd, err := sys.OpenBeneath(dir, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var theirs, ours sys.Fsxattr
	if err := sys.GetFsxattr(fd, &theirs); err != nil {
		return err
	}
	if err := sys.GetFsxattr(l.Fd, &ours); err != nil {
		return err
	}
	if ours.Project() == theirs.Project() {
		return unix.EXDEV
	}
	ours.SetProject(theirs.Project())
	return sys.SetFsxattr(l.Fd, &ours)
}

// Sweeper takes away claims whose owners are dead and whose files nobody needs.
type Sweeper struct {
	c    *Claims
	last map[string]watch
}

// Sweeper returns a Sweeper of c. It is for one goroutine.
func (c *Claims) Sweeper() *Sweeper { return &Sweeper{c: c} }

// Look looks at all claims. It breaks those that it has seen before and that have
// not changed for long, and what is left of a copy that was published.
func (s *Sweeper) Look(ctx context.Context) error {
	entries, err := local.ReadDirAt(ctx, s.c.Dir)
	if err != nil {
		return err
	}
	seen := make(map[string]watch, len(entries))
	for _, e := range entries {
		var now unix.Statx_t
		if sys.StatxNow(s.c.Dir, e.Name, &now) == nil && isPublished(&now) {
			if err := s.c.takeAway(e.Name, &now); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			continue
		}
		w := s.last[e.Name]
		if gone, err := w.over(s.c, e.Name, Lock); err == nil && !gone {
			seen[e.Name] = w
		}
	}
	s.last = seen
	return nil
}
