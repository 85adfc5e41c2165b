package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

func (d *diagnosis) add(f finding) { d.Findings = append(d.Findings, f) }

// kernelOffers are calls that kernels since 5.4 have learnt, and what is done without.
var kernelOffers = []struct {
	what, since string
	there       func() bool
	without     string
}{
	{"private clones of layers", "5.2", sys.HasOpenTree, "layers are used through the mounts they lie on; a mount that is put over one later hides it"},
	{"clones that are read-only and keep access times", "5.12", sys.HasMountSetattr, "a lower's access times change with reading, unless it is mounted noatime"},
	{"openat2(2)", "5.6", sys.HasOpenat2, "paths are walked one component a call, here and in sftp-server: slower, as safe. restore needs it"},
	{"faccessat2(2)", "5.8", sys.HasFaccessat2, "creds=caller cannot be used"},
	{"mount ids in statx(2)", "5.8", sys.HasStatxMountID, "how an NFS layer is mounted is not looked at: see to lookupcache=positive yourself"},
	{"getxattrat(2)", "6.13", sys.HasGetxattrat, "an extended attribute of a lower file takes three calls instead of one"},
	{"pressure (/proc/pressure/io)", "4.20, where it is configured", sys.HasPressure, "drain --max-pressure cannot be used; --max-load can"},
}

func (d *diagnosis) kernel() {
	filtered := sys.Filtered()
	for _, o := range kernelOffers {
		f := finding{Group: "Kernel", What: o.what, There: o.there()}
		if !f.There {
			f.Detail, f.Without = lackText(d.Kernel, o.since, filtered), o.without
		}
		d.add(f)
	}
}

// lackText says why a call is lacking that Linux has since a version. That is not told
// by the version alone: who is filtered has what the filter lets through.
func lackText(kernel, since string, filtered bool) string {
	text := "Linux has it since " + since
	switch version, _, configured := strings.Cut(since, ","); {
	case configured || !isSince(kernel, version):
		return text
	case filtered:
		return text + ", so has this kernel: a seccomp filter hides it, as containers have them"
	}
	return text + ", but here it is refused"
}

// isSince reports whether a kernel's release is of a version ("5.12") or a later one.
func isSince(kernel, version string) bool {
	var has, want [2]int
	_, err := fmt.Sscanf(kernel, "%d.%d", &has[0], &has[1])
	_, err2 := fmt.Sscanf(version, "%d.%d", &want[0], &want[1])
	return err == nil && err2 == nil && slices.Compare(has[:], want[:]) >= 0
}

// fuseOffers are what the kernel says of its FUSE when a mount is made.
var fuseOffers = []struct {
	what, since string
	bit         uint64
	minor       uint32 // of the protocol, where there is no bit
	root        bool   // for root's mounts only
	without     string
}{
	{what: "passthrough", since: "6.9, where it is configured", bit: fuse.CAP_PASSTHROUGH, root: true, without: "what lies in the upper is read and written through the daemon: at half the speed, or less"},
	{what: "HANDLE_KILLPRIV_V2", since: "5.12", bit: fuse.CAP_HANDLE_KILLPRIV_V2, without: "before each write the kernel asks whether the file has capabilities: small writes take several times as long"},
	{what: "mappings of files opened with O_DIRECT", since: "6.6", bit: fuse.CAP_DIRECT_IO_ALLOW_MMAP, without: "a file that is open with O_DIRECT cannot be mapped shared"},
	{what: "flags of setxattr(2)", since: "5.12", bit: fuse.CAP_SETXATTR_EXT, without: "setting an ACL does not tell whether sgid is to go"},
	{what: "large requests", since: "4.20", bit: fuse.CAP_MAX_PAGES, without: "a request carries 128 KiB instead of 1 MiB"},
	{what: "O_TMPFILE", since: "6.1", minor: 37, without: "programs that ask for a file without a name get EOPNOTSUPP, and make one with a name"},
	{what: "statx(2) of the mount", since: "6.6", minor: 39, without: "birth times are not shown"},
}

// mounting makes a mount, and says what the kernel offers it.
func (d *diagnosis) mounting() {
	const group = "Mounting"
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	d.add(finding{
		Group: group, What: "/dev/fuse", There: err == nil, Needed: true, Detail: errText(err),
		Without: withoutFUSE,
	})
	if !isRoot() {
		path, err := exec.LookPath("fusermount3")
		f := finding{Group: group, What: "fusermount3", There: err == nil, Needed: true, Detail: path, Without: "install fuse3: who is not root mounts with it"}
		if fi, err := os.Stat(path); f.There && (err != nil || fi.Mode()&os.ModeSetuid == 0) {
			f.Detail += ", which is not suid root: fine in a user namespace only"
		}
		d.add(f)
		b, err := os.ReadFile("/etc/fuse.conf")
		allowed := err == nil && strings.Contains("\n"+string(b), "\nuser_allow_other")
		d.add(finding{Group: group, What: "user_allow_other in /etc/fuse.conf", There: allowed, Without: "a mount that is not root's is for its user alone"})
		d.add(finding{Group: group, What: "user namespaces for users", There: sys.HasUserNS(), Without: "rootless containers cannot mount"})
	}
	if err != nil {
		return
	}
	settings, err := tryMount()
	d.add(finding{
		Group: group, What: "a mount", There: err == nil, Needed: true, Detail: errText(err),
		Without: "root needs CAP_SYS_ADMIN, others fusermount3; in a container: --cap-add SYS_ADMIN, and no seccomp or AppArmor profile that refuses mount(2)",
	})
	if err != nil {
		return
	}
	for _, o := range fuseOffers {
		f := finding{Group: "FUSE " + fmt.Sprintf("%d.%d", settings.Major, settings.Minor), What: o.what}
		f.There = o.bit != 0 && settings.Flags64()&o.bit != 0 || o.bit == 0 && settings.Minor >= o.minor
		switch {
		case f.There && o.root && !isRoot():
			f.There, f.Detail, f.Without = false, "the kernel has it, for root's mounts", o.without
		case !f.There:
			f.Detail, f.Without = "Linux has it since "+o.since, o.without
		}
		d.add(f)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// tryMount makes a mount of nothing for a moment, and returns what the kernel said of
// itself.
func tryMount() (*fuse.InitIn, error) {
	dir, err := os.MkdirTemp("", "migratefs-doctor-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	server, err := fuse.NewServer(fuse.NewDefaultRawFileSystem(), dir, &fuse.MountOptions{
		Name: "migratefs", FsName: "migratefs-doctor", DirectMountStrict: isRoot(), DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV,
	})
	if err != nil {
		return nil, err
	}
	go server.Serve()
	err = server.WaitMount()
	settings := *server.KernelSettings()
	if e := server.Unmount(); err == nil {
		err = e
	}
	return &settings, err
}

// programs are those that are run.
func (d *diagnosis) programs() {
	const group = "Programs"
	for _, p := range []struct {
		name, without string
		args          []string
	}{
		{"ssh", "lowers on other hosts cannot be mounted: install openssh-clients (Fedora), openssh-client (Debian)", []string{"-V"}},
		{"getent", "idmap=name, and the names of owners in plan, need it", nil},
		{"criu", "migratefs restore cannot be used; criu= mounts can", []string{"--version"}},
	} {
		path, err := exec.LookPath(p.name)
		f := finding{Group: group, What: p.name, There: err == nil, Detail: path, Without: p.without}
		if err == nil && p.args != nil {
			f.Detail += ", " + cmp.Or(firstLine(path, p.args...), "which does not say its version")
		}
		d.add(f)
		if err == nil && p.name == "criu" && isRoot() {
			out := firstLine(path, "check")
			d.add(finding{Group: group, What: "criu check", There: strings.Contains(out, "Looks good"), Detail: out, Without: "this kernel lacks what criu needs: see 'criu check --all'"})
		}
	}
	_, err := os.Stat(umountHelper)
	d.add(finding{
		Group: group, What: umountHelper, There: err == nil,
		Without: "umount(8) returns before everything is written; 'migratefs umount' waits. It comes with the package, see also mount.migratefs(8)",
	})
}

// firstLine is the first line that a program prints, which is given half a minute.
func firstLine(program string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, program, args...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// layer tries what the filesystem of a directory offers to an upper.
func (d *diagnosis) layer(dir string) error {
	real, err := realDir("directory", dir)
	if err != nil {
		return err
	}
	fd, err := unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	group := fmt.Sprintf("As an upper: %q", dir)
	if m, ok := mountOf(real); ok {
		group += ", on " + m.fsType
		if strings.HasPrefix(m.fsType, "nfs") {
			why := unfitNFS(m.opts)
			d.add(finding{Group: group, What: "names that other hosts make are found (lookupcache=positive)", There: why == "", Detail: why, Without: "hosts=many is refused"})
		}
	}
	for _, o := range offers {
		err := probeOne(fd, o.try)
		if noRoom(err) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("try what %q offers: %w: it must be writable, and have room", dir, err)
		}
		without := o.lacking
		if o.needed {
			without = "hosts=many is refused: give hosts=single, and mount it on one host only"
		}
		d.add(finding{Group: group, What: o.what, There: err == nil, Detail: errText(err), Without: without})
	}
	for _, o := range layerOffers {
		err := probeOne(fd, func(p *probing) error { return o.try(p.sub) })
		d.add(finding{Group: group, What: o.what, There: err == nil, Detail: errText(err), Without: o.without})
	}
	return nil
}

// layerOffers are what is worth knowing of an upper beside what many hosts need.
var layerOffers = []struct {
	what    string
	try     func(dir int) error
	without string
}{
	{"user.* xattrs", func(dir int) error { return sys.Setxattr(dir, "", "user.migratefs.probe", []byte("x"), 0) }, "files that have some do not come up, but with xattr=lenient"},
	{"POSIX ACLs", tryACL, "files that have one do not come up, but with xattr=lenient"},
	{"whiteouts", func(dir int) error { return sys.Mknod(dir, "w", unix.S_IFCHR, 0) }, "mode=overlay cannot delete here"},
	{"shared blocks (FICLONE)", sys.Clones, "a copy-up within this filesystem copies the data"},
	{"holes", tryHole, "sparse files take their whole size"},
	{"a UUID of the filesystem (FS_IOC_GETFSUUID)", func(dir int) error { _, err := sys.UUIDOf(dir); return err }, "in overlay mode a file that came up has another inode number after a remount"},
	{"file handles", func(dir int) error { _, _, err := sys.Handle(dir); return err }, "the index of hard links, and inode numbers that stay, are not kept over a remount"},
	{"passthrough", tryStacked, "the kernel does not read and write these files by itself: on ext4, xfs, btrfs, f2fs and tmpfs it does"},
}

// tryACL gives a directory an ACL: rwx for the owner and one more user, and a mask.
func tryACL(dir int) error {
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 7, 65533}, {4, 0, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		acl = append(acl, byte(e.tag), byte(e.tag>>8), byte(e.perm), byte(e.perm>>8), byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return sys.Setxattr(dir, "", "system.posix_acl_access", acl, 0)
}

func tryHole(dir int) error {
	fd, err := sys.Create(dir, "hole", unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const size = 1 << 20
	if _, err := sys.Pwrite(fd, []byte("x"), size); err != nil {
		return err
	}
	at, err := sys.Seek(fd, 0, unix.SEEK_DATA)
	if err == nil && at == 0 {
		err = errMissing
	}
	return err
}

// tryStacked reports whether the kernel takes the filesystem for passthrough, as far
// as its type tells.
func tryStacked(dir int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir, &st); err != nil {
		return err
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return nil
	}
	return unix.EOPNOTSUPP
}
