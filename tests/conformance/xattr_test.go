package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "xattr", tree: xattrTree, beyondSFTP: true, run: xattrs},
		testcase{name: "xattr-overlay", tree: files("f", "d/g"), beyondSFTP: true, run: overlayXattrs},
		testcase{name: "xattr-links", tree: oddFiles, beyondSFTP: true, run: oddXattrs},
		testcase{name: "xattr-rights", tree: files("f", "g"), beyondSFTP: true, run: xattrRights},
		testcase{name: "acl", tree: aclTree, beyondSFTP: true, run: acls},
		testcase{name: "acl-inherited", tree: aclTree, beyondSFTP: true, run: inheritedACLs},
		testcase{name: "umask", tree: files("d/f"), run: umasks},
		testcase{name: "setgid-directory", tree: setgidTree, beyondSFTP: true, run: setgidDirectory},
	)
}

func set(t testing.TB, path, name, value string) {
	t.Helper()
	must(t, unix.Lsetxattr(path, name, []byte(value), 0))
}

func xattrTree(t *testing.T, dir string) {
	files("f", "d/g", "large")(t, dir)
	for _, n := range []string{"f", "d", "d/g"} {
		set(t, filepath.Join(dir, n), "user.one", "1")
		set(t, filepath.Join(dir, n), "trusted.two", "22")
		set(t, filepath.Join(dir, n), "security.three", "333")
		set(t, filepath.Join(dir, n), "user.empty", "")
	}
	set(t, filepath.Join(dir, "large"), "user.large", strings.Repeat("L", 60000))
}

// xattrsOf lists all xattrs of a file, values shortened.
func (c *at) xattrsOf(name string) string {
	c.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(c.path(name), b)
	if err != nil {
		return errName(err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var l []string
	for _, x := range names {
		if x == "" || x == "security.selinux" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(c.path(name), x, v)
		s := string(v[:max(n, 0)])
		if len(s) > 40 {
			s = fmt.Sprintf("%.10s...%d", s, len(s))
		}
		l = append(l, fmt.Sprintf("%s=%q %s", x, s, errName(err)))
	}
	return strings.Join(l, ", ")
}

func xattrs(c *at) {
	for _, n := range []string{"f", "d", "d/g"} {
		p := c.path(n)
		c.note(n, "%s", c.xattrsOf(n))
		c.err("create "+n, unix.Setxattr(p, "user.new", []byte("n"), unix.XATTR_CREATE))
		c.err("create what is there "+n, unix.Setxattr(p, "user.one", []byte("n"), unix.XATTR_CREATE))
		c.err("replace "+n, unix.Setxattr(p, "user.one", []byte("one"), unix.XATTR_REPLACE))
		c.err("replace what is not "+n, unix.Setxattr(p, "user.none", nil, unix.XATTR_REPLACE))
		c.err("remove "+n, unix.Removexattr(p, "trusted.two"))
		c.err("remove what is not "+n, unix.Removexattr(p, "trusted.two"))
		c.note(n+" then", "%s", c.xattrsOf(n))
		_, err := unix.Getxattr(p, "user.none", nil)
		c.err("get what is not "+n, err)
		_, err = unix.Getxattr(p, "user.one", make([]byte, 2))
		c.err("into too little "+n, err)
		size, err := unix.Getxattr(p, "user.one", nil)
		c.note("size "+n, "%d %s", size, errName(err))
		_, err = unix.Listxattr(p, make([]byte, 3))
		c.err("list into too little "+n, err)
		size, err = unix.Listxattr(p, nil)
		c.note("list size "+n, "%d %s", size, errName(err))
		for _, bad := range []string{"user.", "nonsense.x", "nonsense", "user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251), "system.x"} {
			c.err(fmt.Sprintf("set %.20s %d on %s", bad, len(bad), n), unix.Setxattr(p, bad, []byte("x"), 0))
			_, err = unix.Getxattr(p, bad, nil)
			c.err(fmt.Sprintf("get %.20s %d of %s", bad, len(bad), n), err)
		}
	}
	c.err("too large", unix.Setxattr(c.path("f"), "user.big", make([]byte, 65537), 0))
	c.err("large", unix.Setxattr(c.path("f"), "user.big", bytes.Repeat([]byte("b"), 65536), 0))
	v := make([]byte, 65536)
	n, err := unix.Getxattr(c.path("f"), "user.big", v)
	c.note("large is", "%d %s %c", n, errName(err), v[65535])
	c.must(os.WriteFile(c.path("large"), []byte("written"), 0))
	c.note("large came up", "%s", c.xattrsOf("large"))
	for i := range 60 {
		if err := unix.Setxattr(c.path("d"), fmt.Sprintf("user.number-%d", i), []byte("x"), 0); err != nil {
			c.err(fmt.Sprintf("number %d", i), err)
		}
	}
	c.note("many", "%d", len(strings.Split(c.xattrsOf("d"), ",")))
	fd := c.open("f", unix.O_RDONLY)
	c.must(os.Remove(c.path("f")))
	c.err("fsetxattr of an unlinked file", unix.Fsetxattr(fd, "user.late", []byte("late"), 0))
	n, err = unix.Fgetxattr(fd, "user.late", v)
	c.note("fgetxattr of it", "%s %s", v[:max(n, 0)], errName(err))
}

// Names like ours are the user's: set and shown as any, and nothing to us.
func overlayXattrs(c *at) {
	for _, n := range []string{"f", "d"} {
		for _, x := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.overlay.opaque",
			"user.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.origin"} {
			c.err("set "+x+" of "+n, unix.Setxattr(c.path(n), x, []byte("y"), 0))
		}
		c.note(n, "%s", c.xattrsOf(n))
		c.err("remove of "+n, unix.Removexattr(c.path(n), "trusted.overlay.redirect"))
		c.note(n+" then", "%s", c.xattrsOf(n))
	}
	c.note("tree", "%v", c.tree("."))
	c.must(os.WriteFile(c.path("d/g"), []byte("written"), 0))
	c.must(os.Remove(c.path("f")))
	c.note("tree then", "%v", c.tree("."))
}

func oddFiles(t *testing.T, dir string) {
	files("target")(t, dir)
	must(t, os.Symlink("target", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	for _, n := range []string{"link", "fifo"} {
		set(t, filepath.Join(dir, n), "trusted.t", "t")
		set(t, filepath.Join(dir, n), "security.s", "s")
	}
}

func oddXattrs(c *at) {
	for _, n := range []string{"link", "fifo"} {
		p := c.path(n)
		c.note(n, "%s", c.xattrsOf(n))
		c.err("user on "+n, unix.Lsetxattr(p, "user.x", []byte("x"), 0))
		_, err := unix.Lgetxattr(p, "user.x", nil)
		c.err("user of "+n, err)
		c.err("trusted on "+n, unix.Lsetxattr(p, "trusted.x", []byte("x"), 0))
		c.err("security on "+n, unix.Lsetxattr(p, "security.s", []byte("other"), 0))
		c.err("ACL on "+n, unix.Lsetxattr(p, "system.posix_acl_access", aclOf(6, 4, 4, 6, 4), 0))
		c.err("remove of "+n, unix.Lremovexattr(p, "trusted.t"))
		c.note(n+" then", "%s", c.xattrsOf(n))
	}
	c.err("through the link", unix.Setxattr(c.path("link"), "user.x", []byte("x"), 0))
	c.note("target", "%s", c.xattrsOf("target"))
	target, err := os.Readlink(c.path("link"))
	c.note("link", "%s %s", target, errName(err))
}

func xattrRights(c *at) {
	c.must(unix.Chmod(c.path("f"), 0o600))
	set(c, c.path("g"), "trusted.t", "t")
	set(c, c.path("g"), "user.u", "u")
	c.as(1000, func() {
		_, err := unix.Getxattr(c.path("f"), "user.x", nil)
		c.err("get", err)
		c.err("set", unix.Setxattr(c.path("f"), "user.x", nil, 0))
		_, err = unix.Getxattr(c.path("g"), "user.u", nil)
		c.err("get what is readable", err)
		c.err("set what is readable", unix.Setxattr(c.path("g"), "user.x", nil, 0))
		_, err = unix.Getxattr(c.path("g"), "trusted.t", nil)
		c.err("get trusted", err)
		c.err("set trusted", unix.Setxattr(c.path("g"), "trusted.x", nil, 0))
		c.err("set security", unix.Setxattr(c.path("g"), "security.x", nil, 0))
		c.err("set an ACL", unix.Setxattr(c.path("g"), "system.posix_acl_access", aclOf(6, 4, 4, 6, 4), 0))
	})
}

// aclOf is an ACL in the form of its xattr: an entry for user 1002, and the mask.
func aclOf(owner, other, group, mask, rest uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, owner, ^uint32(0)}, {2, other, 1002}, {4, group, ^uint32(0)}, {0x10, mask, ^uint32(0)}, {0x20, rest, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func aclTree(t *testing.T, dir string) {
	files("f", "d/g", "d/new", "plain/h")(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "d/newdir"), 0o755))
	must(t, unix.Setxattr(filepath.Join(dir, "f"), "system.posix_acl_access", aclOf(6, 6, 4, 6, 0), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "d"), "system.posix_acl_default", aclOf(7, 6, 5, 7, 4), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "d"), "system.posix_acl_access", aclOf(7, 7, 5, 7, 5), 0))
}

// aclsOf shows mode and both ACLs.
func (c *at) aclsOf(name string) string {
	c.Helper()
	s := fmt.Sprintf("%o", c.lstat(name).Mode)
	for _, x := range []string{"access", "default"} {
		v := make([]byte, 200)
		n, err := unix.Lgetxattr(c.path(name), "system.posix_acl_"+x, v)
		s += fmt.Sprintf(" %s %x %s", x, v[:max(n, 0)], errName(err))
	}
	return s
}

// An ACL counts, is kept by a copy-up, and its mask is the group bits of the mode.
func acls(c *at) {
	c.note("f", "%s", c.aclsOf("f"))
	c.as(1002, func() {
		c.err("by the entry", tryOpen(c.path("f"), unix.O_RDWR))
		c.err("write by the entry", os.WriteFile(c.path("f"), []byte("by 1002"), 0))
	})
	c.as(1003, func() { c.err("nobody else", tryOpen(c.path("f"), unix.O_RDONLY)) })
	c.note("f, written", "%s", c.aclsOf("f"))
	c.must(unix.Chmod(c.path("f"), 0o640))
	c.note("chmod is the mask", "%s", c.aclsOf("f"))
	c.as(1002, func() { c.err("masked", tryOpen(c.path("f"), unix.O_RDWR)) })
	c.must(unix.Chmod(c.path("f"), 0o600))
	c.as(1002, func() { c.err("masked all", tryOpen(c.path("f"), unix.O_RDONLY)) })
	c.err("set", unix.Setxattr(c.path("f"), "system.posix_acl_access", aclOf(7, 1, 2, 7, 3), 0))
	c.note("f, set", "%s", c.aclsOf("f"))
	c.err("remove", unix.Removexattr(c.path("f"), "system.posix_acl_access"))
	c.note("f, removed", "%s", c.aclsOf("f"))
	c.err("one that says no more than a mode", unix.Setxattr(c.path("f"), "system.posix_acl_access", minimalACL(), 0))
	c.note("f, minimal", "%s", c.aclsOf("f"))
	c.err("nonsense", unix.Setxattr(c.path("f"), "system.posix_acl_access", []byte("nonsense"), 0))
	c.err("default of a file", unix.Setxattr(c.path("f"), "system.posix_acl_default", aclOf(7, 1, 2, 7, 3), 0))
	c.must(os.Chmod(c.path("d/g"), 0o600))
	c.note("d came up", "%s", c.aclsOf("d"))
	c.must(os.Chown(c.path("d"), 5, 5))
	c.note("d changed hands", "%s", c.aclsOf("d"))
	c.err("remove default", unix.Removexattr(c.path("d"), "system.posix_acl_default"))
	c.note("d without", "%s", c.aclsOf("d"))
}

func minimalACL() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][2]uint16{{1, 6}, {4, 4}, {0x20, 0}} {
		b = binary.LittleEndian.AppendUint16(b, e[0])
		b = binary.LittleEndian.AppendUint16(b, e[1])
		b = binary.LittleEndian.AppendUint32(b, ^uint32(0))
	}
	return b
}

// A default ACL is inherited, and takes the place of the umask, also over what was
// deleted.
func inheritedACLs(c *at) {
	c.must(os.Remove(c.path("d/new")))
	c.must(os.Remove(c.path("d/newdir")))
	defer unix.Umask(unix.Umask(0o077))
	for _, d := range []string{"d", "plain"} {
		c.must(createAt(c.open(d, unix.O_RDONLY|unix.O_DIRECTORY), "new", ""))
		c.must(unix.Mkdir(c.path(d, "newdir"), 0o777))
		c.must(unix.Mkfifo(c.path(d, "fifo"), 0o666))
		c.must(unix.Mknod(c.path(d, "node"), unix.S_IFREG|0o666, 0))
		c.must(os.Symlink("x", c.path(d, "link")))
		c.must(unix.Mkdir(c.path(d, "newdir/below"), 0o755))
		for _, n := range []string{"new", "newdir", "fifo", "node", "newdir/below"} {
			c.note(d+"/"+n, "%s", c.aclsOf(d+"/"+n))
		}
	}
	c.must(os.Rename(c.path("plain/new"), c.path("d/moved")))
	c.note("moved in", "%s", c.aclsOf("d/moved"))
	c.must(os.Link(c.path("plain/node"), c.path("d/linked")))
	c.note("linked in", "%s", c.aclsOf("d/linked"))
	c.must(os.Chmod(c.path("d/g"), 0o604))
	c.note("old file", "%s", c.aclsOf("d/g"))
}

func umasks(c *at) {
	defer unix.Umask(unix.Umask(0))
	for _, mask := range []int{0, 0o027, 0o777} {
		unix.Umask(mask)
		for i, name := range []string{"new", "newdir", "new2", "new3"} {
			var err error
			switch i {
			case 0:
				err = createAt(c.open(".", unix.O_RDONLY|unix.O_DIRECTORY), name, "x")
			case 1:
				err = unix.Mkdir(c.path(name), 0o7777)
			case 2:
				err = unix.Mkfifo(c.path(name), 0o666)
			default:
				err = unix.Mknod(c.path(name), unix.S_IFREG|0o6777, 0)
			}
			c.note(fmt.Sprintf("%s %o", name, mask), "%o %s", c.lstat(name).Mode, errName(err))
			c.must(os.Remove(c.path(name)))
		}
	}
}

func setgidTree(t *testing.T, dir string) {
	files("d/f")(t, dir)
	must(t, os.Chown(filepath.Join(dir, "d"), 0, 2001))
	must(t, unix.Chmod(filepath.Join(dir, "d"), 0o2777))
}

func setgidDirectory(c *at) {
	c.must(os.Remove(c.path("d/f")))
	c.as(1000, func() {
		c.must(os.WriteFile(c.path("d/f"), nil, 0o644))
		c.must(os.Mkdir(c.path("d/newdir"), 0o755))
		c.must(unix.Mkfifo(c.path("d/fifo"), 0o644))
		c.must(os.Symlink("x", c.path("d/link")))
		c.err("sgid of a foreign group", unix.Mknod(c.path("d/node"), unix.S_IFREG|0o2770, 0))
	})
	for _, n := range []string{"f", "newdir", "fifo", "link", "node"} {
		st := c.lstat("d/" + n)
		c.note(n, "%o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	c.as(1000, func() {
		c.err("chmod g+s", unix.Chmod(c.path("d/f"), 0o2755))
		c.err("chown to a foreign group", unix.Chown(c.path("d/f"), -1, 0))
		c.err("chown away", unix.Chown(c.path("d/f"), 1001, -1))
		c.err("chgrp to the own group", unix.Chown(c.path("d/f"), -1, 1000))
	})
	st := c.lstat("d/f")
	c.note("in the end", "%o %d:%d", st.Mode, st.Uid, st.Gid)
}
