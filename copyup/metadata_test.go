package copyup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// aclOf is an ACL in the form of its xattr.
func aclOf(entries ...[3]int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(e[2]))
	}
	return b
}

const nobody = -1

// anACL has a named user, and a mask that is not what the group may do.
var anACL = aclOf([3]int{aclUserObj, 7, nobody}, [3]int{aclUser, 5, 1002}, [3]int{aclGroupObj, 4, nobody}, [3]int{aclMask, 7, nobody}, [3]int{aclOther, 1, nobody})

// capNetRaw is cap_net_raw=ep (VFS_CAP_REVISION_2).
var capNetRaw = append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...)

// kinds makes one file of each type with all metadata it can have, and returns
// their names.
func kinds(t *testing.T, dir string) (names []string) {
	t.Helper()
	p := func(name string) string {
		names = append(names, name)
		return filepath.Join(dir, name)
	}
	must(t, os.WriteFile(p("file"), []byte("content"), 0o600))
	must(t, os.Mkdir(p("directory"), 0o700))
	must(t, os.Symlink("where/to", p("symlink")))
	must(t, unix.Mkfifo(p("fifo"), 0o600))
	l, err := net.Listen("unix", p("socket"))
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.Close())
	must(t, unix.Mknod(p("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	must(t, unix.Mknod(p("whiteout"), unix.S_IFCHR|0o600, 0)) // in old storage, a file like any other
	for i, name := range names {
		at := filepath.Join(dir, name)
		must(t, unix.Lchown(at, 1000+i, 2000+i))
		must(t, unix.Lsetxattr(at, "trusted.note", []byte{0, 1, byte(i)}, 0))
		must(t, unix.Lsetxattr(at, "trusted.overlay.opaque", []byte("y"), 0))
		must(t, unix.Lsetxattr(at, "security.note", nil, 0))
		if name != "symlink" {
			must(t, unix.Chmod(at, uint32([]int{0o6751, 0o3775, 0, 0o4640, 0o2604, 0o1621, 0o602, 0}[i])))
			must(t, unix.Setxattr(at, aclAccess, anACL, 0))
		}
		switch name {
		case "file":
			must(t, unix.Setxattr(at, "security.capability", capNetRaw, 0))
			must(t, unix.Setxattr(at, "user.empty", nil, 0))
			must(t, unix.Chmod(at, 0o6751))
		case "directory":
			must(t, unix.Setxattr(at, aclDefault, anACL, 0))
			must(t, unix.Setxattr(at, "user.note", []byte("d"), 0))
			must(t, unix.Chmod(at, 0o3775))
		}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{
			{Sec: 1e9, Nsec: 123456789}, {Sec: -1e8, Nsec: 987654321},
		}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return names
}

// described is all that a copy has to keep.
func described(t *testing.T, dir, name string) string {
	t.Helper()
	d, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(d)
	var stx unix.Statx_t
	must(t, sys.Statx(d, name, &stx))
	a := local.AttrOf(&stx)
	x, err := local.XattrsAt(d, name)
	must(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, "%o %d:%d rdev=%x atime=%v mtime=%v", a.Mode, a.UID, a.GID, a.Rdev, a.Atime, a.Mtime)
	for _, n := range slices.Sorted(maps.Keys(x)) {
		fmt.Fprintf(&b, " %s=%x", n, x[n])
	}
	switch a.Type() {
	case unix.S_IFREG:
		fmt.Fprintf(&b, " %q", read(t, filepath.Join(dir, name)))
	case unix.S_IFLNK:
		target, err := os.Readlink(filepath.Join(dir, name))
		must(t, err)
		fmt.Fprintf(&b, " -> %q", target)
	}
	return b.String()
}

// Every type of file comes up with everything it has, into a directory that would
// give it other owners and ACLs.
func TestMetadata(t *testing.T) {
	lower := disk(t, "xfs", "")
	run(t, "mount", "-o", "remount,noatime", lower)
	names := kinds(t, lower)
	for _, fs := range []string{"ext4", "btrfs", "tmpfs"} {
		t.Run(fs, func(t *testing.T) {
			upper := disk(t, fs, "size=10m")
			must(t, unix.Setxattr(upper, aclDefault, aclOf([3]int{aclUserObj, 6, nobody}, [3]int{aclUser, 7, 3000},
				[3]int{aclGroupObj, 7, nobody}, [3]int{aclMask, 7, nobody}, [3]int{aclOther, 7, nobody}), 0))
			must(t, unix.Chmod(upper, 0o2777))
			for _, name := range names {
				src, at := sourceOf(t, filepath.Join(lower, name)), place(t, upper, name)
				want := described(t, lower, name)
				if src.File != nil {
					c, err := File(t.Context(), src, at, rootly)
					must(t, err)
					must(t, c.Publish())
					unix.Close(c.Fd)
				} else {
					temp, err := Node(src, at, rootly)
					must(t, err)
					must(t, PublishNode(temp, at, src.Attr.IsDir()))
				}
				if got := described(t, upper, name); got != want {
					t.Errorf("%s is\n\t%s\nnot\n\t%s", name, got, want)
				}
			}
		})
	}
}

// The order is what keeps it all: the owner before data and mode, the mode before
// capabilities and ACLs, the times last, and durable before the name.
func TestOrder(t *testing.T) {
	lower, upper := disk(t, "xfs", ""), disk(t, "tmpfs", "size=10m")
	kinds(t, lower)
	must(t, unix.Setxattr(upper, aclDefault, anACL, 0))
	for name, want := range map[string]string{
		"file": "tmpfile chown clone truncate copy_file_range write removexattr chmod setxattr setxattr setxattr setxattr setxattr setxattr setxattr utimes fsync close link",
		"fifo": "mknod chown removexattr chmod setxattr setxattr setxattr setxattr setxattr utimes rename",
	} {
		src, at := sourceOf(t, filepath.Join(lower, name)), place(t, upper, name)
		var did []string
		hooked(func(c sys.Change) error { did = append(did, string(c)); return nil }, func() {
			if src.File == nil {
				temp, err := Node(src, at, rootly)
				must(t, err)
				must(t, PublishNode(temp, at, false))
				return
			}
			c, err := File(t.Context(), src, at, rootly)
			must(t, err)
			must(t, c.Publish())
			unix.Close(c.Fd)
		})
		if got := strings.Join(did, " "); got != want {
			t.Errorf("%s:\n\t%s, want\n\t%s", name, got, want)
		}
	}
}

// A copy that is cut short has the present time, as the truncate that it is for.
func TestCutHasTheTime(t *testing.T) {
	dir := disk(t, "tmpfs", "size=10m")
	kinds(t, dir)
	src := sourceOf(t, filepath.Join(dir, "file"))
	src.Size = 3
	at := place(t, dir, "cut")
	c, err := File(t.Context(), src, at, rootly)
	must(t, err)
	must(t, c.Publish())
	unix.Close(c.Fd)
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "cut"), &st))
	if st.Mtim.Sec < 1e9 || string(read(t, filepath.Join(dir, "cut"))) != "con" {
		t.Errorf("mtime %v", st.Mtim)
	}
}

// Nothing goes over a name that is there, and what was made for it goes.
func TestNameIsTaken(t *testing.T) {
	dir := disk(t, "tmpfs", "size=10m")
	names := kinds(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "taken"), []byte("theirs"), 0o600))
	at := place(t, dir, "taken")
	for _, name := range names {
		src := sourceOf(t, filepath.Join(dir, name))
		var err error
		if src.File != nil {
			var c *Copy
			c, err = File(t.Context(), src, at, rootly)
			must(t, err)
			err = c.Publish()
			c.Discard()
		} else {
			var temp string
			temp, err = Node(src, at, rootly)
			must(t, err)
			err = PublishNode(temp, at, src.Attr.IsDir())
			RemoveTemp(at.Work, temp)
		}
		if !errors.Is(err, unix.EEXIST) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := read(t, filepath.Join(dir, "taken")); string(got) != "theirs" {
		t.Errorf("it is %q", got)
	}
	es, err := os.ReadDir(filepath.Join(dir, ".work"))
	if err != nil || len(es) > 0 {
		t.Errorf("left: %v, %v", es, err)
	}
}

// ramfs has no xattrs and no ACLs; ext4 none that are large.
func TestXattrsThatDoNotFit(t *testing.T) {
	lower, ext4 := disk(t, "xfs", ""), disk(t, "ext4", "")
	ramfs := t.TempDir()
	must(t, unix.Mount("ramfs", ramfs, "ramfs", 0, "mode=0755"))
	t.Cleanup(func() { must(t, unix.Unmount(ramfs, 0)) })
	from := filepath.Join(lower, "file")
	must(t, os.WriteFile(from, []byte("content"), 0o640))
	perms := func(user, group, mask, other int) []byte {
		return aclOf([3]int{aclUserObj, 7, nobody}, [3]int{aclUser, user, 1002}, [3]int{aclGroupObj, group, nobody},
			[3]int{aclGroup, 7, 2002}, [3]int{aclMask, mask, nobody}, [3]int{aclOther, other, nobody})
	}
	for _, c := range []struct {
		what    string
		upper   string
		x       layers.Xattrs
		strict  unix.Errno
		lenient unix.Errno
		mode    uint32 // lenient
	}{
		{"nothing", ramfs, nil, 0, 0, 0o640},
		{"a note", ramfs, layers.Xattrs{"user.note": []byte("n")}, unix.EOPNOTSUPP, 0, 0o640},
		{"a large one", ext4, layers.Xattrs{"user.large": bytes.Repeat([]byte("x"), 20000)}, unix.ENOSPC, 0, 0o640},
		{"what is of the storage", ramfs, layers.Xattrs{NFSv4ACL: []byte("a"), "lustre.lov": []byte("l"), "trusted.lov": []byte("l")}, 0, 0, 0o640},
		{"an ACL that gives more", ramfs, layers.Xattrs{aclAccess: perms(7, 4, 7, 0)}, unix.EOPNOTSUPP, 0, 0o740},
		{"one whose mask takes it", ramfs, layers.Xattrs{aclAccess: perms(7, 7, 4, 4)}, unix.EOPNOTSUPP, 0, 0o744},
		{"one that keeps a user out", ramfs, layers.Xattrs{aclAccess: perms(0, 4, 7, 4)}, unix.EOPNOTSUPP, unix.EOPNOTSUPP, 0},
		{"one that keeps a user from writing", ramfs, layers.Xattrs{aclAccess: perms(4, 6, 7, 4)}, unix.EOPNOTSUPP, unix.EOPNOTSUPP, 0},
		{"one that keeps a group out", ramfs, layers.Xattrs{aclAccess: perms(4, 4, 4, 6)}, unix.EOPNOTSUPP, unix.EOPNOTSUPP, 0},
		{"one that is broken", ramfs, layers.Xattrs{aclAccess: []byte("acl")}, unix.EINVAL, unix.EINVAL, 0},
		{"one of a directory", ramfs, layers.Xattrs{aclDefault: perms(7, 7, 7, 7)}, unix.EOPNOTSUPP, unix.EOPNOTSUPP, 0},
	} {
		for _, lenient := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s lenient=%v", c.what, lenient), func(t *testing.T) {
				src := sourceOf(t, from)
				src.Xattrs, src.Path, src.Attr.Mode = c.x, "d/file", unix.S_IFREG|0o640
				if acl := c.x[aclAccess]; len(acl) > 40 {
					src.Attr.Mode = unix.S_IFREG | 0o700 | uint32(acl[4+4*8+2])<<3 | uint32(acl[4+5*8+2])
				}
				var lost []string
				cfg := Config{Owner: true, Lenient: lenient, LeftOut: func(e *XattrError) { lost = append(lost, e.Name) }}
				got, err := File(t.Context(), src, place(t, c.upper, "copy"), cfg)
				want, x := c.strict, (*XattrError)(nil)
				if lenient {
					want = c.lenient
				}
				if want != 0 {
					if !errors.Is(err, want) || !errors.As(err, &x) || x.Path != "d/file" || c.x[x.Name] == nil || len(lost) > 0 {
						t.Errorf("%v, and lost %q; want %v", err, lost, want)
					}
					if err == nil {
						got.Discard()
					}
					return
				}
				must(t, err)
				defer got.Discard()
				var st unix.Stat_t
				must(t, unix.Fstat(got.Fd, &st))
				if st.Size != 7 || lenient && st.Mode&0o7777 != c.mode || (c.strict != 0) != (len(lost) == 1) {
					t.Errorf("%d bytes, mode %o, want %o; lost %q", st.Size, st.Mode, c.mode, lost)
				}
			})
		}
	}
}

// A full disk is no reason to leave anything out.
func TestFullIsNotLenient(t *testing.T) {
	dir := disk(t, "tmpfs", "size=1m")
	must(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1000<<10), 0o600))
	src := sourceOf(t, filepath.Join(dir, "file"))
	src.Xattrs, src.File, src.Size = layers.Xattrs{"user.note": []byte("n")}, nil, 0
	cfg := Config{Owner: true, Lenient: true}
	for _, err := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS} {
		hooked(nth(1, "setxattr", func() error { return err }), func() {
			if _, got := File(t.Context(), src, place(t, dir, "copy"), cfg); !errors.Is(got, err) {
				t.Errorf("%v, want %v", got, err)
			}
		})
	}
}
