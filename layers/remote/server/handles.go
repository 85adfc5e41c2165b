package server

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// handle is an open file, an open directory, or a walk.
type handle struct {
	fd     int // -1: a walk, or closed
	path   string
	dir    bool
	write  bool
	append bool
	walk   *walk

	in, out int64 // bytes written and read, for the log
}

// handles are the client's, by number. Those that are closed are used again, the
// last one first, as with OpenSSH: a client that has one file open at a time can
// know the next number.
type handles struct {
	all  []*handle
	free []uint32
	open int
	most int
}

// add returns the name of the new handle h, or EMFILE.
func (hs *handles) add(h *handle) (string, error) {
	if hs.open >= hs.most {
		return "", unix.EMFILE
	}
	hs.open++
	var n uint32
	if last := len(hs.free) - 1; last >= 0 {
		n, hs.free = hs.free[last], hs.free[:last]
		hs.all[n] = h
	} else {
		n = uint32(len(hs.all))
		hs.all = append(hs.all, h)
	}
	var name [4]byte
	binary.BigEndian.PutUint32(name[:], n)
	return string(name[:]), nil
}

// get returns the handle called name.
func (hs *handles) get(name []byte) (*handle, uint32, error) {
	if len(name) == 4 {
		n := binary.BigEndian.Uint32(name)
		if uint64(n) < uint64(len(hs.all)) && hs.all[n] != nil {
			return hs.all[n], n, nil
		}
	}
	return nil, 0, unix.EBADF
}

// file returns the handle of a regular file.
func (hs *handles) file(name []byte) (*handle, error) {
	h, _, err := hs.get(name)
	if err == nil && (h.dir || h.walk != nil) {
		err = unix.EBADF
	}
	return h, err
}

func (hs *handles) remove(n uint32) (err error) {
	h := hs.all[n]
	hs.all[n] = nil
	hs.free = append(hs.free, n)
	hs.open--
	return h.close()
}

func (h *handle) close() (err error) {
	if h.walk != nil {
		h.walk.close()
	}
	if h.fd >= 0 {
		err = unix.Close(h.fd)
		h.fd = -1
	}
	return err
}

func (hs *handles) closeAll() {
	for _, h := range hs.all {
		if h != nil {
			_ = h.close()
		}
	}
}
