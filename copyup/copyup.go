package copyup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// TempPrefix begins every temporary name in the work directory.
const TempPrefix = "tmp-"

// Source is the file that is brought up.
type Source struct {
	Attr   layers.Attr
	Xattrs layers.Xattrs // ACLs included
	File   layers.File   // a regular file's data; nil copies none
	Size   int64         // how much of File is copied: Attr.Size, or less for a truncate
	Bare   bool          // the copy gets its size and no data: Xattrs mark it as a metacopy
	Target string        // a symlink's
	Flags  uint32        // inode flags (FS_*_FL); of them come along what KeptFlags says
	Path   layers.Path   // for messages
	Origin Origin        // what the copy says of where it comes from; empty: nothing
}

// Place is where it goes.
type Place struct {
	Dir  int    // descriptor of the target directory
	Name string // in Dir
	Work int    // descriptor of the work directory, on the same filesystem

	// Claim, if not nil, is the file that becomes the copy. Of what has no data it is
	// a lock, beside which the copy is made: Work is then the directory of claims.
	Claim *Claim
}

// Config is what a mount sets once.
type Config struct {
	Volatile bool // no fsync: the upper may be lost with the host
	Owner    bool // restore owners: we are root

	// Lenient leaves out xattrs that the upper cannot hold, where that opens the file
	// to nobody.
	Lenient bool
	// LeftOut is told of each that was left out; nil: nobody is.
	LeftOut func(*XattrError)
}

// File makes a copy of a regular file that has no name yet: data and metadata
// complete and, unless volatile, durable. The caller publishes or discards it, and
// releases the claim in at, if there is one, before the descriptor is closed; if this
// fails, both is done.
func File(ctx context.Context, src Source, at Place, cfg Config) (*Copy, error) {
	c, err := newCopy(at)
	if err != nil {
		return nil, err
	}
	if err := c.fill(ctx, src, cfg); err != nil {
		c.Discard()
		return nil, err
	}
	return c, nil
}

// Copy is a complete file without a name in the merged tree.
type Copy struct {
	Fd   int // open for reading and writing; the caller's once published
	at   Place
	temp string // its name in the work directory where there is no O_TMPFILE
}

func newCopy(at Place) (*Copy, error) {
	if at.Claim != nil {
		return &Copy{Fd: at.Claim.Fd, at: at}, nil
	}
	fd, err := sys.Tmpfile(at.Dir, unix.O_RDWR, 0o600)
	if err == nil {
		return &Copy{Fd: fd, at: at}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, err
	}
	temp := TempName()
	fd, err = sys.Create(at.Work, temp, unix.O_RDWR|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &Copy{Fd: fd, at: at, temp: temp}, nil
}

func (c *Copy) fill(ctx context.Context, src Source, cfg Config) error {
	if err := ownerFirst(c.Fd, &src.Attr, cfg); err != nil {
		return err
	}
	var err error
	switch {
	case src.Bare:
		err = sys.Truncate(c.Fd, src.Size)
	case src.File != nil && src.Size > 0:
		if err = copyData(ctx, c.Fd, src.File, src.Size, src.Attr.Size, cfg); err == nil {
			err = verify(ctx, c.Fd, src.File, src.Size)
		}
	}
	if err != nil {
		return err
	}
	if err := metadata(c.Fd, &src, cfg); err != nil {
		return err
	}
	if l := c.at.Claim; l != nil {
		if l.isSlow(src.Size) && !cfg.Volatile {
			// What takes long while others look on is done before the file gets its times.
			if err := sys.Fsync(c.Fd); err != nil {
				return err
			}
		}
		l.quiet()
	}
	if err := times(c.Fd, &src); err != nil {
		return err
	}
	setFlags(c.Fd, &src)
	return settled(ctx, c.Fd, cfg)
}

// settled makes the open file fd durable. What close(2) would say of it is asked
// before anything is done that relies on it.
func settled(ctx context.Context, fd int, cfg Config) error {
	if cfg.Volatile {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := sys.Fsync(fd); err != nil {
		return err
	}
	return sys.CloseEarly(fd)
}

// Publish gives the copy its name. EEXIST means that the name is taken: whoever
// has it was first. On success the descriptor stays open and is the caller's.
func (c *Copy) Publish() error {
	if l := c.at.Claim; l != nil {
		return l.publish(c.at.Dir, c.at.Name)
	}
	if c.temp == "" {
		return c.published(sys.LinkFd(c.Fd, c.at.Dir, c.at.Name))
	}
	if err := c.published(sys.Link(c.at.Work, c.temp, c.at.Dir, c.at.Name)); err != nil {
		return err
	}
	// The name is published: a temporary name left behind is swept later.
	_ = sys.Unlink(c.at.Work, c.temp)
	c.temp = ""
	return nil
}

// published is the error of the link that was to publish c: none if the name that is
// taken is c's own, since NFS repeats requests.
func (c *Copy) published(err error) error {
	if errors.Is(err, unix.EEXIST) && isSame(c.Fd, c.at.Dir, c.at.Name) {
		return nil
	}
	return err
}

// PublishAs is Publish under another name of the same directory: the file was
// renamed while it was copied.
func (c *Copy) PublishAs(name string) error {
	c.at.Name = name
	return c.Publish()
}

// LinkTo gives the copy a further name, as an index does.
func (c *Copy) LinkTo(dir int, name string) error { return sys.LinkFd(c.Fd, dir, name) }

// Nameless forgets the temporary name, if there is one: the file then lives as
// long as its descriptor, which is the caller's.
func (c *Copy) Nameless() {
	c.release()
	if c.temp != "" {
		_ = sys.Unlink(c.at.Work, c.temp)
		c.temp = ""
	}
}

// release gives the claim up, if there is one. What cannot be is broken by who
// needs it.
func (c *Copy) release() {
	if c.at.Claim != nil {
		c.at.Claim.Release()
		c.at.Claim = nil
	}
}

// Discard takes the copy away.
func (c *Copy) Discard() {
	c.Nameless()
	unix.Close(c.Fd)
}

// TempName returns a name for the work directory that nobody else has.
func TempName() string {
	return TempPrefix + randomHex(24)
}

func randomHex(digits int) string {
	b := make([]byte, digits/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Node makes a copy of a directory, symlink, FIFO, socket or device node under
// a temporary name in the work directory, metadata complete, and returns that
// name. PublishNode puts it in place.
func Node(src Source, at Place, cfg Config) (temp string, err error) {
	a := &src.Attr
	temp = TempName()
	if at.Claim != nil && !a.IsDir() {
		if temp, err = at.Claim.nodeName(); err != nil {
			return "", err
		}
	}
	switch a.Type() {
	case unix.S_IFDIR:
		err = sys.Mkdir(at.Work, temp, 0o700)
	case unix.S_IFLNK:
		err = sys.Symlink(src.Target, at.Work, temp)
	default:
		err = sys.Mknod(at.Work, temp, a.Type()|0o600, a.Rdev)
	}
	// Nobody else has that name, but NFS repeats requests.
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	if err = nodeMetadata(at.Work, temp, &src, cfg); err != nil {
		RemoveTemp(at.Work, temp)
		return "", err
	}
	return temp, nil
}

// Renew gives the directory that was published at the place at the metadata of src
// anew.
func Renew(at Place, src Source, cfg Config) error {
	return nodeMetadata(at.Dir, at.Name, &src, cfg)
}

// PublishNode renames temp into place, never over another name: EEXIST then.
// Where the filesystem lacks RENAME_NOREPLACE, files are linked, and a directory
// is renamed over nothing but an empty directory, as rename(2) has it.
func PublishNode(temp string, at Place, isDir bool) error {
	if at.Claim != nil && !isDir {
		return at.Claim.publishNode(temp, at)
	}
	err := sys.Rename(at.Work, temp, at.Dir, at.Name, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if isDir {
		fd, ferr := sys.OpenAt(at.Work, temp, unix.O_PATH)
		if ferr != nil {
			return ferr
		}
		defer unix.Close(fd)
		err = sys.Rename(at.Work, temp, at.Dir, at.Name, 0)
		if errors.Is(err, unix.ENOENT) && isSame(fd, at.Dir, at.Name) {
			return nil // NFS repeats requests
		}
		return err
	}
	if err := sys.Link(at.Work, temp, at.Dir, at.Name); err != nil {
		return err
	}
	_ = sys.Unlink(at.Work, temp)
	return nil
}

// RemoveTemp takes away a temporary name of any type. Failing is harmless: the
// name is swept at the next mount.
func RemoveTemp(work int, temp string) {
	if err := sys.Unlink(work, temp); err == unix.EISDIR || err == unix.EPERM {
		removeTree(work, temp)
	}
}

// SyncDir makes the names in the directory dir, which may be O_PATH, durable.
func SyncDir(dir int, cfg Config) error {
	if cfg.Volatile {
		return nil
	}
	fd, err := sys.OpenBeneath(dir, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Fsync(fd)
}
