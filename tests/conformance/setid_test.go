package conformance

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "direct-drops", tree: setIDs, beyondSFTP: true, run: directDrops},
		testcase{name: "acl-sgid", tree: groupDirs, beyondSFTP: true, run: aclDropsSgid},
		testcase{name: "handles", tree: files("f"), run: fileHandles},
	)
}

// modeAlone asks for the mode and for nothing else, as an exec does: what the
// kernel believes of it is not brought up to date by asking for more.
func (c *at) modeAlone(label, name string) {
	var stx unix.Statx_t
	c.must(unix.Statx(unix.AT_FDCWD, c.path(name), 0, unix.STATX_MODE, &stx))
	c.note(label, "%o", stx.Mode)
}

// directDrops writes as a stranger in the ways that the kernel does not write
// itself.
func directDrops(c *at) {
	for _, n := range []string{"a", "b", "c"} {
		c.modeAlone("at first", n)
	}
	c.as(1000, func() {
		fd := c.open("a", unix.O_WRONLY|unix.O_DIRECT)
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		c.must(err)
		_, err = unix.Pwrite(fd, page, 0)
		c.must(err)
		c.must(unix.Munmap(page))
		fd = c.open("b", unix.O_WRONLY|unix.O_APPEND)
		_, err = unix.Write(fd, []byte("x"))
		c.must(err)
		from, to := c.open("d", unix.O_RDONLY), c.open("c", unix.O_WRONLY)
		_, err = unix.CopyFileRange(from, nil, to, nil, 5, 0)
		c.must(err)
	})
	c.modeAlone("O_DIRECT", "a")
	c.modeAlone("O_APPEND", "b")
	c.modeAlone("copy_file_range", "c")
}

func groupDirs(t *testing.T, dir string) {
	for _, n := range []string{"in", "out", "root"} {
		must(t, os.Mkdir(dir+"/"+n, 0o755))
		put(t, dir+"/"+n+".f", "program")
	}
	for name, gid := range map[string]int{"in": 1000, "out": 1001, "root": 1001} {
		for _, n := range []string{name, name + ".f"} {
			must(t, os.Chown(dir+"/"+n, 1000, gid))
			must(t, unix.Chmod(dir+"/"+n, 0o2755))
		}
	}
}

// aclDropsSgid sets an ACL as an owner who is, or is not, in the file's group.
func aclDropsSgid(c *at) {
	all := binary.LittleEndian.AppendUint32(nil, 2)
	for _, tag := range []uint16{1, 4, 0x20} {
		all = binary.LittleEndian.AppendUint16(all, tag)
		all = binary.LittleEndian.AppendUint16(all, 7)
		all = binary.LittleEndian.AppendUint32(all, ^uint32(0))
	}
	set := func(name string) { c.must(unix.Setxattr(c.path(name), "system.posix_acl_access", all, 0)) }
	c.as(1000, func() {
		for _, name := range []string{"in", "in.f", "out", "out.f"} {
			set(name)
		}
	})
	set("root")
	set("root.f")
	for _, name := range []string{"in", "in.f", "out", "out.f", "root", "root.f"} {
		c.modeAlone(name, name)
	}
}

func fileHandles(c *at) {
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, c.path("f"), 0)
	c.err("name_to_handle_at", err)
}
