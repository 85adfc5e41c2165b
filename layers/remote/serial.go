package remote

import (
	"errors"
	"fmt"

	"github.com/migratefs/migratefs/layers"
)

// OpenSSH's server answers one request after the other, and a handle is the index
// of a slot: the slot that became free last, at first 0. So where no handle is open,
// the next OPEN or OPENDIR gives slot0, and what is to be done with the handle can be
// asked in the same burst, before its name has come back: a block is OPEN, READ,
// FSTAT and CLOSE (or OPENDIR, READDIR and CLOSE), and blocks stand one behind the
// other. Nothing else opens a handle on such a channel; if the OPEN fails, slot0 is no
// handle, and the rest of the block fails.
//
// A server shows at the start of each channel that it does so, and each block shows
// it again: an answer is believed only if the OPEN's handle was slot0, the CLOSE closed
// it, and all answers of the channel have come in the order of their requests. The
// first that is otherwise ends its channel, and the practice.
const slot0 = "\x00\x00\x00\x00"

// errUnpredicted: the block was in vain, and the channel was given up.
var errUnpredicted = lost(errors.New("the server did not do what was predicted"))

// predicts reports whether blocks may be sent on c.
func (c *conn) predicts() bool { return !c.main && c.serial.Load() }

// askProbe tries twice whether OPENDIR gives slot0, and whether a closed handle is
// one no more. It is asked where no handle was opened before.
func askProbe(dir string) []request {
	open := askPath(fxpOpendir, dir)
	open.closed = true
	end := askHandle(fxpClose, slot0)
	return []request{open, end, end, open, end}
}

// readProbe reads the answers to askProbe.
func (c *conn) readProbe(replies []reply) {
	again := replies[2].status()
	ok := isSlot0(&replies[0]) && isOK(&replies[1]) && replies[2].typ == fxpStatus && again != nil &&
		isSlot0(&replies[3]) && isOK(&replies[4])
	for _, i := range []int{0, 3} {
		if h, err := replies[i].handle(); err == nil && h != slot0 {
			c.post(askHandle(fxpClose, h))
		}
	}
	c.serial.Store(ok)
}

func isSlot0(r *reply) bool {
	h, err := r.handle()
	return err == nil && h == slot0
}

func isOK(r *reply) bool { return r.typ == fxpStatus && r.status() == nil }

// askBlock reads n bytes at off of the file full.
func askBlock(c *conn, full string, off int64, n int) []request {
	open := askOpen(full)
	open.closed = true
	reqs := make([]request, 0, blockLen(c, n)+4)
	reqs = append(reqs, open)
	for at := 0; at < n; at += c.caps.chunk {
		reqs = append(reqs, askRead(slot0, off+int64(at), min(c.caps.chunk, n-at)))
	}
	return append(reqs, askHandle(fxpFstat, slot0), askHandle(fxpClose, slot0))
}

// blockLen is how many requests askBlock makes.
func blockLen(c *conn, n int) int { return 3 + (n+c.caps.chunk-1)/c.caps.chunk }

// openedBlock reads what became of the OPEN and the CLOSE of a block. Its error is
// the server's, or errUnpredicted.
func (l *Layer) openedBlock(c *conn, open, end *reply) error {
	h, err := open.handle()
	switch {
	case !c.serial.Load(), err == nil && (h != slot0 || !isOK(end)):
		l.erratic.Store(true)
		c.fail(errUnpredicted, nil) // closes all there is
		return errUnpredicted
	}
	return err
}

// readBlock reads the answers to askBlock for a file that is to be want's version. It
// returns the n bytes in the pieces in which they came.
func (l *Layer) readBlock(c *conn, replies []reply, want *layers.Attr, n int) ([][]byte, error) {
	last := len(replies) - 1
	if err := l.openedBlock(c, &replies[0], &replies[last]); err != nil {
		return nil, err
	}
	if err := l.isVersion(&replies[last-1], want); err != nil {
		return nil, err
	}
	parts, err := takeParts(c, replies[1:last-1], n)
	if err == nil {
		l.count.predicted.Add(1)
	}
	return parts, err
}

// errShort: a READ brought less than it was asked for, which is no error of the server.
var errShort = fmt.Errorf("a short read")

// takeParts returns the n bytes that READs in chunks have brought.
func takeParts(c *conn, replies []reply, n int) ([][]byte, error) {
	parts := make([][]byte, len(replies))
	for i := range replies {
		due := min(c.caps.chunk, n-i*c.caps.chunk)
		data, err := replies[i].data()
		switch {
		case isStatus(err, fxEOF):
			return nil, fmt.Errorf("%w: it ends early", layers.ErrStale)
		case err != nil:
			return nil, err
		case len(data) > due:
			return nil, corrupt("%d bytes where %d were asked for", len(data), due)
		case len(data) < due:
			return nil, errShort
		}
		parts[i] = data
	}
	return parts, nil
}

// joined makes one slice of parts, which are not used otherwise. A part that lies in a
// much larger body is copied, so that what is kept is as large as it seems.
func joined(parts [][]byte, n int) []byte {
	if len(parts) == 1 && cap(parts[0]) < n+n/4+64 {
		return parts[0]
	}
	all := make([]byte, 0, n)
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
