package sys

import "golang.org/x/sys/unix"

// Syncfs makes everything durable that was written to the filesystem of fd.
// Since Linux 5.8 it reports writeback errors seen since fd was opened.
func Syncfs(fd int) error {
	return change("syncfs", func() error { return unix.Syncfs(fd) })
}

// Seek finds data or a hole (whence SEEK_DATA, SEEK_HOLE) at or after off; it
// moves the file offset of fd.
func Seek(fd int, off int64, whence int) (pos int64, err error) {
	err = Retry(func() error {
		pos, err = unix.Seek(fd, off, whence)
		return err
	})
	return pos, err
}
