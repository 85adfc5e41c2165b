package remote

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func TestNlink(t *testing.T) {
	for _, c := range []struct {
		longname string
		mode     uint32
		want     uint32
	}{
		{"-rw-r--r--    1 root     root         2 Nov 22 21:10 a file", unix.S_IFREG, 1},
		{"drwxr-xr-x   17 root     root      4096 Nov 22  2019 d", unix.S_IFDIR, 17},
		{"-rw-r--r--+   3 a user   a group      2 Nov 22 21:10 acl", unix.S_IFREG, 3},
		{"lrwxrwxrwx    1 0 0 5 Nov 22 21:10 l", unix.S_IFLNK, 1},
		{"-rw-r--r--  65000 0 0 5 Nov 22 21:10 f", unix.S_IFREG, 65000},
		{"-rw-r--r--    ? root     root         2 Nov 22 21:10 f", unix.S_IFREG, 0},
		{"drwxr-xr-x    2 root     root      4096 Nov 22  2019 d", unix.S_IFREG, 0}, // another type
		{"-rw-r--r--    0 0 0 5 Nov 22 21:10 f", unix.S_IFREG, 0},
		{"-rw-r--r--    -1 0 0 5", unix.S_IFREG, 0},
		{"-rw-r--r--    +1 0 0 5", unix.S_IFREG, 0},
		{"-rw-r--r--    4294967296 0 0 5", unix.S_IFREG, 0},
		{"-rw-r--r--    7", unix.S_IFREG, 0}, // may be cut
		{"-rw-r--r-- ", unix.S_IFREG, 0},
		{"- 3 x", unix.S_IFREG, 0},
		{"f", unix.S_IFREG, 0},
		{"", unix.S_IFREG, 0},
		{"01-01-70  12:00AM  3 f", unix.S_IFREG, 0},
	} {
		got, ok := nlink([]byte(c.longname), c.mode)
		if got != c.want || ok != (c.want != 0) {
			t.Errorf("%q: %d, %v, want %d", c.longname, got, ok, c.want)
		}
	}
}

// FuzzReply decodes whatever a server may send with every decoder there is.
func FuzzReply(f *testing.F) {
	n := &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1, data: []byte("x")}
	f.Add(packet(fxpAttrs, 1, n.attrs()))
	f.Add(packet(fxpName, 1, cat(u32(2), listed("a", "-rw-r--r--    1 a b", n), listed("..", "", n))))
	f.Add(packet(fxpHandle, 1, str(nil, "h")))
	f.Add(packet(fxpData, 1, str(nil, "data")))
	f.Add(status(1, fxNoSuchFile))
	f.Add(packet(fxpExtendedReply, 1, u64(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255)))
	f.Add(packet(fxpExtendedReply, 1, cat(u32(0, 1), str(str(nil, "user.a"), "value"))))
	f.Add(packet(fxpData, 1, []byte("root:x:0:0:root:/root:/bin/sh\nbad:x:-1:0\n")))
	f.Add(packet(fxpAttrs, 1, cat(u32(attrMode|attrExtended, unix.S_IFDIR, 1), str(str(nil, "a"), "b"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := readPacket(bytes.NewReader(b), func(uint32) int { return maxPacket })
		if err != nil {
			return
		}
		if len(r.body) > len(b) {
			t.Fatalf("a body of %d bytes out of %d", len(r.body), len(b))
		}
		if a, err := r.attrs(); err == nil && (a.Size < 0 || a.Size > maxSize || a.Type() == 0) {
			t.Errorf("%+v", a)
		}
		if h, err := r.handle(); err == nil && (h == "" || len(h) > maxHandle) {
			t.Errorf("handle %q", h)
		}
		if d, err := r.data(); err == nil && (len(d) == 0 || len(d) > len(b)) {
			t.Errorf("%d bytes of data", len(d))
		}
		if s, err := r.name(); err == nil && s == "" {
			t.Error("an empty name")
		}
		_, _ = r.statvfs()
		_ = r.status()
		if x, next, err := r.xattrs(); err == nil {
			for name, value := range x {
				if name == "" || len(name) > xattrNameMax || len(value) > xattrMax {
					t.Errorf("attribute %q, %d bytes, next %d", name, len(value), next)
				}
			}
		}
		c := conn{}
		if c.readLimits(&r) == nil && (c.caps.chunk != 0 && c.caps.chunk < leastChunk || c.caps.chunk > maxChunk || c.caps.handles < 0) {
			t.Errorf("limits %+v", c.caps)
		}
		for id, name := range parseDatabase(r.body) {
			if !validOwner(name) {
				t.Errorf("owner %d %q", id, name)
			}
		}
		list, _, err := r.entries(func(name string) {
			if layers.ValidName(name) {
				t.Errorf("%q is refused", name)
			}
		})
		for _, e := range list {
			if err != nil || !layers.ValidName(e.Name) {
				t.Errorf("%q, %v", e.Name, err)
			}
			if e.Attr != nil && (e.Attr.Size < 0 || e.Attr.Size > maxSize || e.Attr.Type() != e.Type ||
				e.Attr.Has(layers.KnownNlink) != (e.Attr.Nlink != 0)) {
				t.Errorf("%+v", e.Attr)
			}
		}
	})
}

// FuzzVersion: whatever a server greets with is extensions or an error, and never
// a hang or a crash.
func FuzzVersion(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05\x02\x00\x00\x00\x03"))
	f.Add(newFake().honest(&query{typ: fxpInit}))
	f.Add([]byte("Welcome!\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConn(&pipeTransport{bytes.NewReader(b), new(bytes.Buffer), func() {}}, 1, new(counters))
		if exts, err := c.version(); err == nil && (len(b) < 9 || len(exts) > 256) {
			t.Errorf("%d extensions out of %d bytes", len(exts), len(b))
		}
	})
}

// FuzzLongname: a link count comes only from a line that looks like ls -l.
func FuzzLongname(f *testing.F) {
	f.Add([]byte("-rw-r--r--    1 root     root         2 Nov 22 21:10 f"), uint32(unix.S_IFREG))
	f.Add([]byte("drwxr-xr-x+ 17 a b c"), uint32(unix.S_IFDIR))
	f.Fuzz(func(t *testing.T, b []byte, mode uint32) {
		if n, ok := nlink(b, mode); ok && (n == 0 || len(b) < 13 || b[0] != typeLetter(mode)) {
			t.Errorf("%q: %d", b, n)
		}
	})
}
