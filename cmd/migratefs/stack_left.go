package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// departure says whether the mount was detached from its sources: then none of them is
// opened. Whether what says so may be believed, the mount itself looks again.
func (st *stack) departure() (*overlay.Departure, error) {
	if st.upper == "" || st.o.mode != "overlay" {
		return nil, nil
	}
	path := st.o.work
	if path == "" {
		path = defaultWork(st.upper)
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, mountErrorf("work directory %q: %v: name another with workdir=", path, bare(err))
	}
	defer dir.Close()
	d, err := overlay.ReadDeparture(int(dir.Fd()))
	if err != nil {
		return nil, mountErrorf("work directory %q: %v", path, err)
	}
	return d, nil
}
