package remote

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"time"
)

const (
	extStatvfs = "statvfs@openssh.com"
	extLimits  = "limits@openssh.com"
)

// handshake exchanges INIT and VERSION, asks for the limits, and finds out with
// the directory probe whether handles can be predicted. The channel is not
// running before and runs afterwards.
func (c *conn) handshake(ctx context.Context, probe string) error {
	stop := context.AfterFunc(ctx, func() { c.t.Close() })
	defer stop()
	exts, err := c.version()
	if err != nil {
		if why := c.t.Close(); why != nil {
			return why // the carrier knows better than "EOF"
		}
		return err
	}
	c.caps = caps{statvfs: exts[extStatvfs] == "2", names: exts[extUsersGroups] == "1", chunk: defaultChunk}
	c.run()
	if err := c.extend(ctx, exts); err != nil {
		return err
	}
	reqs := askProbe(probe)
	limits := exts[extLimits] == "1"
	if limits {
		reqs = append(reqs, request{typ: fxpExtended, body: str(nil, extLimits), weight: 256})
	}
	sent := time.Now()
	replies, err := c.do(ctx, reqs...)
	if err != nil {
		return err
	}
	c.rtt = time.Since(sent)
	c.readProbe(replies)
	if limits {
		err = c.readLimits(&replies[len(replies)-1])
	}
	c.opens = newWindow(c.bulkHandles())
	return err
}

func (c *conn) readLimits(r *reply) error {
	d, err := r.expect(fxpExtendedReply)
	if err != nil {
		return nil // offered and then refused: the defaults hold
	}
	d.U64() // packet length
	readLen := d.U64()
	d.U64() // write length
	handles := d.U64()
	if d.Bad {
		return corrupt("malformed limits")
	}
	if readLen > 0 {
		c.caps.chunk = int(max(leastChunk, min(readLen, maxChunk)))
	}
	c.caps.handles = int(min(handles, 1<<20))
	return nil
}

// version returns the extensions that the server offers.
func (c *conn) version() (map[string]string, error) {
	hello := []byte{0, 0, 0, 5, fxpInit, 0, 0, 0, 3}
	if _, err := c.t.Write(hello); err != nil {
		return nil, lost(err)
	}
	var head [5]byte
	if n, err := io.ReadFull(c.in, head[:]); err != nil {
		if n > 0 {
			return nil, noise(head[:n])
		}
		return nil, lost(err)
	}
	n := binary.BigEndian.Uint32(head[:4])
	if head[4] != fxpVersion || n < 5 || n > maxPacket {
		more, _ := c.in.Peek(min(c.in.Buffered(), 60))
		return nil, noise(append(head[:], more...))
	}
	body := make([]byte, n-1)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, lost(err)
	}
	d := decode(body)
	if v := d.U32(); v != 3 {
		return nil, corrupt("SFTP version %d where version 3 was asked for", v)
	}
	exts := make(map[string]string)
	for len(d.B) > 0 && len(exts) < 256 {
		name, value := d.Bytes(), d.Bytes()
		if d.Bad {
			return nil, corrupt("a malformed VERSION packet")
		}
		exts[string(name)] = string(value)
	}
	return exts, nil
}

// noise is the error for a server that begins with something else than SFTP.
func noise(b []byte) error {
	return &protocolError{what: fmt.Sprintf("%s instead of SFTP; if the login shell there prints something, "+
		"make it silent when it is not interactive", strconv.Quote(string(b)))}
}
