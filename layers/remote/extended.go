package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// ours is what a server has that is our own (package extension). The zero value is
// any other server.
type ours struct {
	attrs   bool // all ATTRS are whole
	xattrs  bool
	extents bool
	hash    bool
}

// extend finds out whether the server is our own, and has it tell all it knows.
// Exts is what its VERSION packet said.
func (c *conn) extend(ctx context.Context, exts map[string]string) error {
	has := func(name string) bool { return exts[name] == extension.Version }
	if !has(extension.Attrs) {
		return nil
	}
	replies, err := c.do(ctx, askOurs(extension.Attrs))
	if err != nil {
		return err
	}
	if err := replies[0].ok(); err != nil {
		return fmt.Errorf("%s: %w", extension.Attrs, err)
	}
	c.caps.ours = ours{attrs: true, xattrs: has(extension.Xattrs), extents: has(extension.Extents), hash: has(extension.Hash)}
	return nil
}

// meetServer looks at who answers on the new channel c, and at the root.
func (l *Layer) meetServer(ctx context.Context, c *conn, what kind) error {
	if what == mainFirst {
		l.ours = c.caps.ours
	} else if err := l.sameServer(c); err != nil {
		return err
	}
	return l.meetRoot(ctx, c, what == mainFirst)
}

// sameServer refuses a server of another kind than the layer began with: what is
// known of files by one cannot be compared with what the other says.
func (l *Layer) sameServer(c *conn) error {
	if c.caps.ours.attrs == l.ours.attrs {
		return nil
	}
	what := "it was migratefs's when it was mounted"
	if c.caps.ours.attrs {
		what = "it was not migratefs's when it was mounted"
	}
	return &connectError{verdict: verdictRefused,
		what:   fmt.Sprintf("the SFTP server on %s is another one", l.cfg.Target.Host),
		remedy: what + ": mount anew"}
}

// askOurs asks for an extension of ours, or of others. Fields are strings, uint32s
// and uint64s.
func askOurs(name string, fields ...any) request {
	b := str(nil, name)
	for _, f := range fields {
		switch v := f.(type) {
		case string:
			b = str(b, v)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		}
	}
	return request{typ: fxpExtended, body: b, weight: 256 + len(b)}
}

// ok decodes a STATUS that says that something was done.
func (r *reply) ok() error {
	if r.typ != fxpStatus {
		return corrupt("a packet of type %d where a STATUS was due", r.typ)
	}
	return r.status()
}

// same reports whether a, from the server, is the version of the file that want
// describes, as far as the server shows that. Where it shows the time of the last change of any kind, that
// counts as well: a program that sets the modification time back is found out. So is
// a rename, a chmod or a new link, which could not be told from it.
//
// Want may be a note of size, modification time and mode from before a mount, when the
// server was of the other kind, or the group's rights were shown otherwise: then
// seconds are compared, and no group's rights.
func same(a, want *layers.Attr) bool {
	mine, w := *a, *want
	if !w.Has(layers.KnownOwner) && !w.Has(layers.KnownCtime) {
		const group = 0o070 | unix.S_ISGID
		mine.Mode, w.Mode = mine.Mode|group, w.Mode|group
	}
	switch {
	case !mine.Has(layers.KnownCtime):
		w.Mtime.Nsec = 0
	case w.Has(layers.KnownCtime):
		return mine.Ctime == w.Ctime && mine.SameVersion(&w)
	case w.Mtime.Nsec == 0:
		mine.Mtime.Nsec = 0
	}
	return mine.SameVersion(&w)
}

const (
	// mostXattrs bounds the extended attributes of one file, in bytes.
	mostXattrs = 4 << 20

	// xattrMax is XATTR_SIZE_MAX, and 255 is XATTR_NAME_MAX.
	xattrMax     = 64 << 10
	xattrNameMax = 255
)

// Xattrs takes one exchange, and more for more than 192 KiB of them, if the server is
// our own. SFTP version 3 has none: nil, nil. Those that mean something on the source
// alone are left out (wantsXattr).
func (l *Layer) Xattrs(ctx context.Context, p layers.Path) (x layers.Xattrs, err error) {
	if !l.ours.xattrs {
		return nil, nil
	}
	if err := l.check(p); err != nil {
		return nil, l.fail("getxattr", p, err)
	}
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		x, err = l.xattrs(ctx, c, p)
		return err
	})
	return x, l.fail("getxattr", p, err)
}

func (l *Layer) xattrs(ctx context.Context, c *conn, p layers.Path) (layers.Xattrs, error) {
	if !c.caps.ours.xattrs {
		return nil, unix.ENOTSUP
	}
	dir, _ := p.Split()
	var x layers.Xattrs
	size := 0
	for next := uint32(0); ; {
		ask := askOurs(extension.Xattrs, l.path(p), next)
		ask.weight = 128 << 10
		replies, err := c.do(ctx, append([]request{ask}, l.askWhere(dir, c)...)...)
		if err != nil {
			return nil, err
		}
		_, err = l.where(replies[1:], dir)
		if errors.Is(err, errVague) {
			return nil, l.whyAbsent(ctx, c, dir)
		}
		if err != nil {
			return nil, err
		}
		more, then, err := replies[0].xattrs()
		if err != nil {
			return nil, err
		}
		if then != 0 && (then <= next || len(more) == 0) {
			return nil, corrupt("extended attributes that never end")
		}
		for name, value := range more {
			if size += len(name) + len(value); size > mostXattrs {
				return nil, fmt.Errorf("more than %d bytes of extended attributes: %w", mostXattrs, unix.E2BIG)
			}
			if x == nil {
				x = make(layers.Xattrs)
			}
			if l.wantsXattr(name) {
				x[name] = value
			}
		}
		if next = then; next == 0 {
			break
		}
	}
	if len(x) == 0 {
		return nil, nil
	}
	return x, l.ownACLs(x)
}

// xattrs decodes the answer to xattrs@migratefs.
func (r *reply) xattrs() (x layers.Xattrs, next uint32, err error) {
	d, err := r.expect(fxpExtendedReply)
	if err != nil {
		return nil, 0, err
	}
	next = d.U32()
	n := d.U32()
	if uint64(n)*8 > uint64(len(d.B)) {
		return nil, 0, corrupt("an answer that claims %d extended attributes in %d bytes", n, len(r.body))
	}
	x = make(layers.Xattrs, n)
	for range n {
		name, value := d.Str(), d.Bytes()
		_, twice := x[name]
		if d.Bad || twice || name == "" || len(name) > xattrNameMax || len(value) > xattrMax || strings.IndexByte(name, 0) >= 0 {
			return nil, 0, corrupt("malformed extended attributes")
		}
		x[name] = append([]byte(nil), value...)
	}
	return x, next, nil
}

// wantsXattr reports whether an attribute means here what it means on the source. What
// users and their ACLs say does. Capabilities are what setuid bits are, and go where
// those go: nosuid, which is the default for a source, keeps either from counting in the
// mount. But where the owners are not the source's (uid=, gid=), and so setuid gives away
// no more than their rights, capabilities would give root's. What is trusted.* was said by
// root to the programs of one host (trusted.overlay.redirect, trusted.gfid): the source's
// root has nothing to say to those of this one. Neither have labels of security modules.
func (l *Layer) wantsXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "user.migratefs."):
		return false // says something about a layer of a mount there
	case name == "security.capability":
		return os.Geteuid() == 0 && (l.cfg.UID == nil || l.cfg.IDMap)
	}
	return strings.HasPrefix(name, "user.") || name == xattrAccess || name == xattrDefault
}
