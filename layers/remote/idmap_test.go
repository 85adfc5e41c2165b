package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/server"
)

// byName makes the fake tell names of owners, and the layer's host know some.
func byName(f *fake) func(*Config) {
	f.exts[extUsersGroups] = "1"
	return func(c *Config) { c.IDMap = true }
}

// knows replaces what this host knows.
func (l *Layer) knows(passwd, group map[string]uint32) {
	l.ids.local = func(_ context.Context, database string, names []string) (map[string]uint32, error) {
		found := make(map[string]uint32)
		for _, n := range names {
			from := passwd
			if database == "group" {
				from = group
			}
			if id, ok := from[n]; ok {
				found[n] = id
			}
		}
		return found, nil
	}
}

// namesAnswer is the answer to users-groups-by-id@ of a source where everybody is
// called "u" or "g" and a number, but for those above 9000.
func namesAnswer(q *query) []byte {
	list := func(b []byte, letter string) (out []byte) {
		for ; len(b) >= 4; b = b[4:] {
			name := ""
			if id := binary.BigEndian.Uint32(b); id <= 9000 {
				name = fmt.Sprintf("%s%d", letter, id)
			}
			out = str(out, name)
		}
		return out
	}
	uids, gids := q.rest.Bytes(), q.rest.Bytes()
	return packet(fxpExtendedReply, q.id, str(str(nil, string(list(uids, "u"))), string(list(gids, "g"))))
}

func TestIDMap(t *testing.T) {
	for name, fallback := range map[string][2]*uint32{"nobody": {}, "uid and gid": {ptr(500), ptr(600)}} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.files["/src/g"].uid, f.files["/src/g"].gid = 1000, 2000
			for i := range 300 {
				f.files[fmt.Sprintf("/src/n%d", i)] = &fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000, uid: 3000 + uint32(i), gid: 9999}
			}
			asked := 0
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ == fxpExtended && q.name == extUsersGroups {
					asked++
					return namesAnswer(q), true
				}
				return nil, false
			}
			l := f.open(t, byName(f), func(c *Config) { c.UID, c.GID = fallback[0], fallback[1] })
			l.knows(map[string]uint32{"u0": 0, "u1000": 77, "u3007": 78}, map[string]uint32{"g2000": 99, "g0": 0})
			unknownUser, unknownGroup := uint32(nobody), uint32(nobody)
			if fallback[0] != nil {
				unknownUser, unknownGroup = *fallback[0], *fallback[1]
			}
			a, err := l.Stat(soon(t), "g")
			must(t, err)
			if a.UID != 77 || a.GID != 99 {
				t.Errorf("owner %d:%d, want 77:99", a.UID, a.GID)
			}
			if b, err := content(soon(t), l, "g", 10); err != nil || len(b) != 10 {
				t.Errorf("%q, %v", b, err)
			}
			list, err := l.ReadDir(soon(t), "")
			must(t, err)
			for _, e := range list {
				uid, gid := unknownUser, unknownGroup
				switch e.Name {
				case "f":
					uid, gid = 0, 0
				case "g":
					uid, gid = 77, 99
				case "n7":
					uid = 78
				}
				if e.Attr.UID != uid || e.Attr.GID != gid {
					t.Errorf("%s: owner %d:%d, want %d:%d", e.Name, e.Attr.UID, e.Attr.GID, uid, gid)
				}
			}
			was := asked
			if was > 4 {
				t.Errorf("names were asked for in %d requests", was)
			}
			paths := []layers.Path{"f", "g", "n1", "n2"}
			if _, errs, err := l.StatMany(soon(t), paths); err != nil || errors.Join(errs...) != nil {
				t.Error(errs, err)
			}
			if asked != was {
				t.Error("names that are known are asked for again")
			}
		})
	}
}

func ptr(v uint32) *uint32 { return &v }

// A server that does not tell names has files that do.
func TestIDMapFromFiles(t *testing.T) {
	f := newFake()
	f.files["/etc/passwd"] = &fakeFile{mode: unix.S_IFREG | 0o644, data: []byte("root:x:0:0::/:/bin/sh\nodd:line\nann:x:1000:1:Ann:/home/ann:/bin/sh\nagain:x:1000:1::/:\n")}
	f.files["/etc/group"] = &fakeFile{mode: unix.S_IFREG | 0o644, data: []byte("root:x:0:\nstaff:x:2000:ann\n")}
	f.files["/src/g"].uid, f.files["/src/g"].gid = 1000, 2000
	l := f.open(t, func(c *Config) { c.IDMap = true })
	l.knows(map[string]uint32{"ann": 5, "again": 6}, map[string]uint32{"staff": 7})
	a, err := l.Stat(soon(t), "g")
	if err != nil || a.UID != 5 || a.GID != 7 {
		t.Errorf("%d:%d, %v", a.UID, a.GID, err)
	}
}

// Without either, nothing is guessed.
func TestIDMapUnknown(t *testing.T) {
	l := newFake().open(t, func(c *Config) { c.IDMap = true })
	if _, err := l.Stat(soon(t), "g"); err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
}

// A server that makes up owners without end is not asked without end.
func TestIDMapHostile(t *testing.T) {
	f := newFake()
	next := uint32(10)
	f.lie = func(q *query) ([]byte, bool) {
		switch {
		case q.typ == fxpExtended && q.name == extUsersGroups:
			return packet(fxpExtendedReply, q.id, str(str(nil, "\x00\x00\x00\x09root\nroot"), "\x00\x00\x00\x02-x")), true
		case q.typ == fxpLstat && q.name == "/src/f":
			next++
			return packet(fxpAttrs, q.id, (&fakeFile{mode: unix.S_IFREG | 0o644, mtime: 1000, uid: next, gid: next}).attrs()), true
		}
		return nil, false
	}
	l := f.open(t, byName(f))
	l.ids.users.most, l.ids.groups.most = 50, 50
	l.knows(map[string]uint32{"root\nroot": 0}, map[string]uint32{"-x": 0})
	a, err := l.Stat(soon(t), "f")
	if err != nil || a.UID != nobody || a.GID != nobody {
		t.Errorf("%d:%d, %v", a.UID, a.GID, err)
	}
}

// With our server on one host both sides know the same names: nothing changes, ACLs
// included, but for who has no name.
func TestIDMapOwnServer(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	write(t, name, "text")
	must(t, os.Chown(name, 1, 987_654))
	entry := func(tag, perm uint16, id uint32) (b []byte) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(b, perm), id)
	}
	head := []byte{aclVersion, 0, 0, 0}
	none := ^uint32(0)
	acl := cat(head, entry(1, 6, none), entry(aclUser, 4, 1), entry(aclUser, 4, 987_654), entry(4, 4, none), entry(aclGroup, 4, 1), entry(0x10, 4, none), entry(0x20, 0, none))
	want := cat(head, entry(1, 6, none), entry(aclUser, 4, 1), entry(4, 4, none), entry(aclGroup, 4, 1), entry(0x10, 4, none), entry(0x20, 0, none))
	must(t, unix.Setxattr(name, xattrAccess, acl, 0))
	cfg := owned(dir, server.Config{})
	cfg.IDMap = true
	l := open(t, cfg)
	a, err := l.Stat(soon(t), "f")
	if err != nil || a.UID != 1 || a.GID != nobody {
		t.Errorf("%d:%d, %v", a.UID, a.GID, err)
	}
	x, err := l.Xattrs(soon(t), "f")
	if err != nil || string(x[xattrAccess]) != string(want) {
		t.Errorf("%q, %v, want %q", x[xattrAccess], err, want)
	}
}

// What may be a mask is nobody's right, unless the ACL is there to see.
func TestNoGroup(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	write(t, name, "text")
	must(t, unix.Chmod(name, 0o2775))
	for _, l := range []*Layer{
		open(t, func() Config { c := startSSHD(t).layer(dir); c.NoGroup = true; return c }()),
		open(t, func() Config { c := owned(dir, server.Config{}); c.NoGroup = true; return c }()),
	} {
		want := uint32(unix.S_IFREG | 0o705)
		if l.ours.xattrs {
			want = unix.S_IFREG | 0o2775
		}
		a, err := l.Stat(soon(t), "f")
		if err != nil || a.Mode != want {
			t.Errorf("%o, %v, want %o", a.Mode, err, want)
		}
		note := layers.Attr{Known: layers.KnownSize | layers.KnownTimes, Mode: unix.S_IFREG | 0o775, Size: a.Size, Mtime: a.Mtime}
		for _, want := range []*layers.Attr{&a, &note} { // also of a mount without the option
			f, err := l.Open(soon(t), "f", want)
			must(t, err)
			b := make([]byte, 4)
			if _, err := f.ReadAt(soon(t), b, 0); err != nil || string(b) != "text" {
				t.Errorf("%q, %v", b, err)
			}
		}
		note.Mode = unix.S_IFREG | 0o771
		if _, err := l.Open(soon(t), "f", &note); !errors.Is(err, layers.ErrStale) {
			t.Errorf("another mode: %v", err)
		}
	}
}
