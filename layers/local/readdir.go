package local

import (
	"bytes"
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// direntHeader is the size of linux_dirent64 before the name: ino and off (8
// bytes each), reclen (2), type (1).
const direntHeader = 19

// ReadDirFd returns every entry of the directory fd, which must be open for
// reading, from its present position; "." and ".." are left out.
func ReadDirFd(ctx context.Context, fd int) ([]layers.Entry, error) {
	var entries []layers.Entry
	err := EachPart(ctx, fd, func(part []layers.Entry) error {
		entries = append(entries, part...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// EachPart calls f with what ReadDirFd returns, a part at a time, so that a
// directory of any size takes little memory. f may not keep the part.
func EachPart(ctx context.Context, fd int, f func([]layers.Entry) error) error {
	buf := make([]byte, 64<<10)
	var part []layers.Entry
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		part = parseDirents(part[:0], buf[:n])
		if err := f(part); err != nil {
			return err
		}
	}
}

// ReadDirAt is ReadDirFd for the directory dirfd, which may be O_PATH, from its
// beginning.
func ReadDirAt(ctx context.Context, dirfd int) ([]layers.Entry, error) {
	fd, err := sys.OpenBeneath(dirfd, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return ReadDirFd(ctx, fd)
}

func parseDirents(entries []layers.Entry, b []byte) []layers.Entry {
	for len(b) >= direntHeader {
		reclen := int(binary.NativeEndian.Uint16(b[16:]))
		if reclen < direntHeader || reclen > len(b) {
			return entries
		}
		name := b[direntHeader:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); layers.ValidName(s) {
			entries = append(entries, layers.Entry{
				Name: s,
				Type: uint32(b[18]) << 12, // DT_* are the S_IFMT bits
				Ino:  binary.NativeEndian.Uint64(b),
			})
		}
		b = b[reclen:]
	}
	return entries
}
