package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a filesystem in a sparse file, mounted.
type disk struct {
	image, dir string
}

// newDisk makes a filesystem of type fstype ("ext4", "xfs", "btrfs") of size GiB.
func newDisk(at, fstype string, size int64) (*disk, error) {
	d := &disk{image: filepath.Join(at, fstype+".img"), dir: filepath.Join(at, fstype)}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size << 30); err != nil {
		return nil, err
	}
	options := "loop"
	mkfs := []string{"mkfs.xfs", "-q", "-m", "reflink=1", d.image}
	switch fstype {
	case "btrfs":
		mkfs = []string{"mkfs.btrfs", "-q", d.image}
	case "ext4":
		// Nothing in the background: no inode tables to be written later.
		mkfs = []string{"mkfs.ext4", "-q", "-F", "-i", "8192", "-E", "lazy_itable_init=1,nodiscard", d.image}
		options += ",noinit_itable"
	}
	if err := command(mkfs...); err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		return nil, err
	}
	return d, command("mount", "-o", options, d.image, d.dir)
}

func (d *disk) close() error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("umount %s: %w", d.dir, err) // what may still be in use stays
	}
	if err := os.Remove(d.image); err != nil {
		return err
	}
	return os.Remove(d.dir)
}

// sync writes out what earlier work left dirty, so that it is not written while
// something is timed.
func (d *disk) sync() {
	f, err := os.Open(d.dir)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.Syncfs(int(f.Fd()))
}

// dropCaches empties the page cache (1) or the caches of names and inodes (2).
func dropCaches(what string) error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0)
}

// command runs a program; what it says is in the error.
func command(args ...string) error { return commandIn("", args...) }

func commandIn(dir string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
