package overlay

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
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
			if id, err = readID(f); err != nil {
				f.Close()
				return "", nil, err
			}
			_ = copyup.Sweep(dir) // what others are making cannot become the id any more
			return id, f, nil
		}
		if err != unix.ENOENT {
			return "", nil, fmt.Errorf("%s/%s: %w", Reserved, idName, err)
		}
		// ENOENT: somebody who found an id swept what was to become one.
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

func readID(f *os.File) (string, error) {
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

// makeID gives a layer an id, unless it has one by then. It sweeps nothing: of many
// at once, each would take away what the others are making, and none be done.
func makeID(dir int) error {
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
