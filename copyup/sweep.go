package copyup

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

// Sweep removes temporary names that a crash left in the work directory. Only
// the one owner of the work directory may call it.
func Sweep(work int) error {
	entries, err := local.ReadDirAt(context.Background(), work)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, TempPrefix) {
			RemoveTemp(work, e.Name)
		}
	}
	return nil
}

// removeTree removes a directory and what is in it: a temporary directory, or
// an upper directory of whiteouts that was moved out of sight. Best effort.
func removeTree(dirfd int, name string) {
	fd, err := sys.OpenAt(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	entries, _ := local.ReadDirFd(context.Background(), fd)
	for _, e := range entries {
		if err := sys.Unlink(fd, e.Name); err == unix.EISDIR || err == unix.EPERM {
			removeTree(fd, e.Name)
		}
	}
	unix.Close(fd)
	_ = sys.Rmdir(dirfd, name)
}
