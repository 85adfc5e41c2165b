package copyup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// probe tries out what the new storage can hold, in a directory of its own there.
// What was tried once for a kind of thing is remembered.
type probe struct {
	root int // of the new storage
	dir  int
	temp string // dir's name
	fs   layers.Statfs
	dev  uint64

	mu       sync.Mutex // protects what follows, and serializes what is tried
	nodes    map[string]error
	verdicts map[string]error
	maxSize  int64 // the largest file that was seen to be possible
	minSize  int64 // the smallest that was seen not to be; 0: none
	nameMax  int
	maxLink  int // as maxSize, of a symlink's target
	minLink  int
}

func newProbe(dir string) (pr *probe, err error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	pr = &probe{root: root, dir: -1, temp: ".migratefs-plan-" + TempName(), nodes: map[string]error{}, verdicts: map[string]error{}}
	var stx unix.Statx_t
	if pr.fs, err = local.StatfsFd(root); err == nil {
		err = sys.Statx(root, "", &stx)
	}
	if err == nil {
		pr.dev = unix.Mkdev(stx.Dev_major, stx.Dev_minor)
		if err = sys.Mkdir(root, pr.temp, 0o700); err == nil {
			pr.dir, err = sys.OpenAt(root, pr.temp, unix.O_RDONLY|unix.O_DIRECTORY)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nothing can be tried out in %q: %w", dir, err), pr.close())
	}
	pr.nameMax = pr.longestName()
	return pr, nil
}

// close removes what was made.
func (pr *probe) close() (err error) {
	if pr.dir >= 0 {
		es, rerr := local.ReadDirAt(context.Background(), pr.dir)
		err = rerr
		for _, e := range es {
			if uerr := sys.Unlink(pr.dir, e.Name); uerr == unix.EISDIR || uerr == unix.EPERM {
				err = errors.Join(err, sys.Rmdir(pr.dir, e.Name))
			} else {
				err = errors.Join(err, uerr)
			}
		}
		unix.Close(pr.dir)
		err = errors.Join(err, sys.Rmdir(pr.root, pr.temp))
	}
	unix.Close(pr.root)
	return err
}

// space is what a file takes there: data in whole blocks.
func (pr *probe) space(a *layers.Attr, data int64) int64 {
	block := int64(pr.fs.Frsize)
	if block <= 0 {
		block = 4096
	}
	n := data
	switch {
	case a.IsDir():
		n = max(a.Size, 1)
	case a.Type() == unix.S_IFLNK && a.Size < 60, !a.IsRegular() && a.Type() != unix.S_IFLNK:
		n = 0 // in the inode
	}
	return (n + block - 1) / block * block
}

// node makes a file of a type to try things on, once, and returns its name.
func (pr *probe) node(typ uint32) (name string, err error) {
	name = fmt.Sprintf("node-%o", typ)
	if err, ok := pr.nodes[name]; ok {
		return name, err
	}
	switch typ {
	case unix.S_IFREG:
		var fd int
		if fd, err = sys.Create(pr.dir, name, unix.O_RDWR|unix.O_EXCL, 0o600); err == nil {
			unix.Close(fd)
		}
	case unix.S_IFDIR:
		err = sys.Mkdir(pr.dir, name, 0o700)
	case unix.S_IFLNK:
		err = sys.Symlink("target", pr.dir, name)
	default:
		err = sys.Mknod(pr.dir, name, typ|0o600, unix.Mkdev(1, 3))
	}
	pr.nodes[name] = err
	return name, err
}

// verdict tries once what the key names.
func (pr *probe) verdict(key string, try func() error) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	err, ok := pr.verdicts[key]
	if !ok {
		if err = try(); pr.full(err) {
			return nil
		}
		pr.verdicts[key] = err
	}
	return err
}

// full reports whether a trial failed for want of room, which the plan tells by
// itself: ENOSPC may also mean that an inode has no room for its xattrs.
func (pr *probe) full(err error) bool {
	if errors.Is(err, unix.EDQUOT) {
		return true
	}
	st, serr := local.StatfsFd(pr.root)
	return errors.Is(err, unix.ENOSPC) && serr == nil && (st.Bavail < 16 || st.Files > 0 && st.Ffree == 0)
}

// longestName finds how long a name may be: statfs(2) is not believed, as on
// filesystems that encrypt names.
func (pr *probe) longestName() int {
	good, bad := 0, layers.NameMax+1
	for n := layers.NameMax; good+1 < bad; n = (good + bad) / 2 {
		name := strings.Repeat("n", n)
		err := sys.Symlink("t", pr.dir, name)
		if pr.full(err) {
			return layers.NameMax
		}
		if err != nil {
			bad = n
			continue
		}
		_ = sys.Unlink(pr.dir, name)
		good = n
	}
	return good
}

func (pr *probe) name(t *tally, p layers.Path, name string) {
	if len(name) > pr.nameMax {
		t.issue("name", fmt.Sprintf("longer than the %d bytes that a name may have", pr.nameMax), true, p)
	}
	if utf8.ValidString(name) {
		return
	}
	err := pr.verdict("not utf-8", func() error {
		const odd = "n\xff"
		err := sys.Symlink("t", pr.dir, odd)
		if err == nil {
			_ = sys.Unlink(pr.dir, odd)
		}
		return err
	})
	if err != nil {
		t.issue("name", "not UTF-8, which is refused: "+err.Error(), true, p)
	}
}

// symlink looks whether so long a target is possible: xfs takes 1,024 bytes.
func (pr *probe) symlink(t *tally, p layers.Path, target string) {
	if len(target) < 256 {
		return
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	n := len(target)
	if n > pr.maxLink && (pr.minLink == 0 || n < pr.minLink) {
		const name = "long"
		err := sys.Symlink(strings.Repeat("t", n), pr.dir, name)
		switch {
		case err == nil:
			_ = sys.Unlink(pr.dir, name)
			pr.maxLink = n
		case !pr.full(err):
			pr.minLink = n
		}
	}
	if pr.minLink > 0 && n >= pr.minLink {
		t.issue("symlink", "its target is longer than a symlink can hold", true, p)
	}
}

// size looks whether so large a file is possible.
func (pr *probe) size(t *tally, p layers.Path, size int64) {
	const easy = 1 << 30
	if size <= easy {
		return
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if size > pr.maxSize && (pr.minSize == 0 || size < pr.minSize) {
		if pr.canBe(size) {
			pr.maxSize = size
		} else {
			pr.minSize = size
		}
	}
	if pr.minSize > 0 && size >= pr.minSize {
		t.issue("size", "larger than a file can be", true, p)
	}
}

func (pr *probe) canBe(size int64) bool {
	name, err := pr.node(unix.S_IFREG)
	if err != nil {
		return true
	}
	fd, err := sys.OpenAt(pr.dir, name, unix.O_RDWR)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = sys.Truncate(fd, size)
	_ = sys.Truncate(fd, 0)
	return !errors.Is(err, unix.EFBIG) && !errors.Is(err, unix.EINVAL)
}

func (pr *probe) special(t *tally, p layers.Path, a *layers.Attr) {
	err := pr.verdict(fmt.Sprintf("type %o", a.Type()), func() error {
		_, err := pr.node(a.Type())
		return err
	})
	if err != nil {
		t.issue("special", specialName(a.Type())+" cannot be made: "+err.Error(), true, p)
	}
}

// xattrs looks whether a file of this type can have these. Few and small ones are
// tried once for each kind; many or large ones, of which a filesystem may have room
// for some, as they are.
func (pr *probe) xattrs(t *tally, p layers.Path, a *layers.Attr, x layers.Xattrs) {
	const small = 512
	names := make([]string, 0, len(x))
	total := 0
	for n, v := range x {
		if belongsToStorage(n) {
			t.issue("xattr", class(n)+" belongs to the old storage and is left behind", false, p)
			continue
		}
		total += len(n) + len(v)
		names = append(names, n)
	}
	sort.Strings(names)
	if total <= small {
		for _, n := range names {
			err := pr.verdict(fmt.Sprintf("xattr %o %s", a.Type(), class(n)), func() error {
				return pr.setXattrs(a.Type(), []string{n}, x)
			})
			if err != nil {
				t.issue("xattr", class(n)+" cannot be set, and only xattr=lenient leaves it out: "+err.Error(), true, p)
			}
		}
		return
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if err := pr.setXattrs(a.Type(), names, x); err != nil && !pr.full(err) {
		t.issue("xattr", "so many or so large ones cannot be set, and only xattr=lenient leaves some out: "+err.Error(), true, p)
	}
}

// setXattrs tries to give one file all of them.
func (pr *probe) setXattrs(typ uint32, names []string, x layers.Xattrs) error {
	name, err := pr.node(typ)
	if err != nil {
		return nil // told by itself
	}
	for i, n := range names {
		if err = sys.Setxattr(pr.dir, name, n, x[n], 0); err != nil {
			break
		}
		defer func() { _ = sys.Removexattr(pr.dir, name, names[i]) }()
	}
	return err
}

// class is what xattrs have in common that a filesystem takes or refuses.
func class(name string) string {
	switch prefix, _, _ := strings.Cut(name, "."); prefix {
	case "user", "trusted", "lustre", "btrfs", "ceph":
		return prefix + ".*"
	}
	return name
}

// owner looks whether files can be given to a user.
func (pr *probe) owner(uid, gid uint32) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	name, err := pr.node(unix.S_IFREG)
	if err != nil {
		return nil
	}
	if err := sys.Chown(pr.dir, name, int(uid), int(gid)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(pr.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		return fmt.Errorf("%d:%d was made of %d:%d", st.Uid, st.Gid, uid, gid)
	}
	return nil
}

// time looks whether a time can be kept.
func (pr *probe) time(sec int64) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	name, err := pr.node(unix.S_IFREG)
	if err != nil {
		return nil
	}
	ts := [2]unix.Timespec{{Sec: sec}, {Sec: sec}}
	if err := sys.Utimes(pr.dir, name, ts); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(pr.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mtim.Sec != sec {
		return errors.New("it was changed to another")
	}
	return nil
}

// links looks whether a file can have two names.
func (pr *probe) links() error {
	return pr.verdict("link", func() error {
		name, err := pr.node(unix.S_IFREG)
		if err != nil {
			return err
		}
		return sys.Link(pr.dir, name, pr.dir, name+"-2")
	})
}
