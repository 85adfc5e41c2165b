package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Checkpoint is what the images of one `criu dump` say about files.
type Checkpoint struct {
	Dir     string // as given to Load
	Version uint32 // of the image format (inventory.img): 1 or 2
	Arch    string // as runtime.GOARCH names it

	Tasks  []Task
	Files  []File  // sorted by path, each file once per Place
	Mounts []Mount // of the mount namespaces that were dumped; none if tasks ran in the host's
	Trees  []Tree  // the directory trees that OnDisk files lie in; the first is the root
	Locks  []Lock  // on open files

	// Which namespaces the tasks had to themselves, so that CRIU makes them anew.
	PidNS, MountNS, NetNS, UserNS bool

	// ShellJob: a task's session or process group leader is not among the
	// tasks; CRIU wants --shell-job at restore as at dump.
	ShellJob bool

	// Memory is how much of the tasks' memory the images hold, in bytes: all of
	// it is read before a task runs, but for LazyMemory with restore --lazy-pages: what
	// is private and anonymous, but for stacks in use and huge pages.
	Memory, LazyMemory int64

	// LSM is "apparmor" or "selinux" if a task is confined by that.
	LSM string

	// ByRuntime: a container's runtime made the checkpoint (runc, crun), and restores
	// it with what it knows besides: descriptors of its own, cgroups, hooks.
	ByRuntime bool

	// Container is what the engine that made the checkpoint says of the
	// container; nil if the images are not of its archive.
	Container *Container

	// Origin is what migratefs dump wrote beside the images; its Root is "" if they are
	// not of it, and the paths are those of the host that was dumped.
	Origin Origin

	// Obstacles are what the images alone show to be in the way of a restore.
	// CheckHost adds what this host lacks.
	Obstacles []Obstacle

	// Warnings are for people: what Load did not understand or will not carry.
	Warnings []string

	dirs      []inTree     // directories in which CRIU makes sockets and deleted files anew
	rootMount uint32       // id of the root task's; 0: it saw its host's mounts
	mapped    bool         // MapTree has been called: see PathOf
	addresses []netip.Addr // that sockets are bound to
	tools     []string     // programs that CRIU starts for these images
	xstate    uint64       // parts of an x86's registers that a thread has in use
	fsys      fs.FS
}

// Task is one process of the checkpoint.
type Task struct {
	PID, PPID, PGID, SID uint32
	Threads              []uint32
	Comm                 string // at most 15 bytes; may hold anything but NUL
}

// Place says where a file lies, and so whether it moves with the process.
type Place uint8

const (
	// OnDisk: on storage that stays behind. These files make up the seed.
	OnDisk Place = iota
	// OnHost: in proc, sysfs, tmpfs and the like, or a device, socket or FIFO.
	// CRIU takes it from the host that restores, or makes it anew.
	OnHost
	// InImages: deleted while in use, or on a tmpfs of the tasks' own; the
	// images hold its content.
	InImages
)

// File is one file that the tasks refer to.
type File struct {
	Path      string // as the tasks see it: absolute, clean; in a dumped mount namespace from its root
	Place     Place
	Mode      uint32    // type and permissions; 0: not recorded
	Size      int64     // bytes
	SizeKnown bool      // never for what was opened only to append
	ModTime   time.Time // images have it of deleted files only; else zero
	BuildID   []byte    // of an ELF file, as in its note; nil: none or not recorded
	Refs      []Ref

	// Where it lies when bind mounts are taken away. Tree is the Key of a Tree,
	// "" if the file is not on storage: all that are OnDisk have one, and FIFOs
	// whose name is there. TreePath is absolute and counts from the
	// Tree's directory; HostPath is the path on the host that was dumped, "" as
	// long as nobody knows that of the Tree (see MapTree).
	Tree, TreePath, HostPath string

	Deleted  bool   // it had no name any more; or, with a Place OnDisk, another than Path
	Remap    string // path of the other name that the dump gave it (link_remap.N); "" if none
	TTY      string // "pty", "console", "serial"...; "" if it is no terminal
	Stranded bool   // a device node on storage: nobody can tell which device it is
}

// RefKind is a way in which a task refers to a file.
type RefKind uint8

const (
	Descriptor RefKind = iota
	Mapping
	Executable
	WorkingDir
	RootDir
	Watch // inotify or fanotify
	Other // no task is known to (a deleted file's other name, say)
	Bound // a Unix socket of this name, which CRIU binds anew
)

// String is the kind as people name it.
func (k RefKind) String() string {
	if names := [...]string{"descriptor", "mapping", "executable", "cwd", "root", "watch", "other", "socket"}; int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Ref is one reference of a task to a file.
type Ref struct {
	Kind RefKind
	PID  uint32 // 0 for Watch and Other

	// Descriptor:
	FD    uint32
	Flags uint32 // O_*
	Pos   int64  // file offset

	// Mapping: bytes of the file, PROT_*, and MAP_SHARED or not.
	Off, Len int64
	Prot     uint32
	Shared   bool
	// Held are the parts of it, in bytes of the file, that the images hold since
	// the task had changed them: nobody needs those from the file.
	Held []Range
	// Next are the pages, as offsets in the file, on which threads go on when
	// they run again, but for those in Held.
	Next []int64
}

// Range is a part of a file, in bytes.
type Range struct{ Off, Len int64 }

// Mount is one mount of a dumped mount namespace.
type Mount struct {
	ID, Parent uint32
	NS         uint32 // id of its namespace
	Point      string // mountpoint, from the namespace's root
	Root       string // the directory of its filesystem that is mounted
	Dev        uint32 // of its filesystem, as CRIU numbers it
	Type       string // "ext4", "tmpfs"...; "" if CRIU does not know it
	Source     string
	Virtual    bool   // nothing of it lies on storage
	External   bool   // CRIU gets it from the caller at restore
	Key        string // what the caller names it by; "" if not External

	auto bool // found by --external mnt[]
}

// Tree is a directory tree that lay on the storage of the host that was dumped.
// A checkpoint of a process in the host's own mounts has one, "/"; one with
// mounts of its own has its root, "/" as well, and one more for each external
// mount or disk mounted below.
type Tree struct {
	Key     string // what MapTree takes: "/", an external mount's key or a mountpoint
	Point   string // where the tasks see it
	HostDir string // its directory on the host that was dumped; "" if not known
	Files   int    // how many of Checkpoint.Files lie in it

	// External: CRIU mounts there what the caller names at restore, by Key; with Auto it is
	// what the host that restores has at HostDir, whatever the caller says.
	External, Auto bool

	root   bool
	given  bool   // by the caller's --external: nothing of it comes from the source
	source string // what CRIU would mount there, for messages
}

// inTree is a path in a Tree.
type inTree struct{ key, path string }

// LockKind is a kind of file lock.
type LockKind string

// Lock is a lock that a task holds on an open file.
type Lock struct {
	Kind     LockKind // "posix", "flock", "ofd", "lease"
	PID      uint32
	FD       int32
	Path     string // "" if the descriptor is not known
	Off, Len int64  // Len 0: to the end
}

// ErrNoImages: the directory holds no checkpoint.
var ErrNoImages = errors.New("no CRIU images")

// ArchError: the checkpoint is of another kind of machine.
type ArchError struct {
	Dir, Arch, Host string
}

func (e *ArchError) Error() string {
	return fmt.Sprintf("checkpoint %q is of a process on %s, this host is %s: restore it on a host of its own kind", e.Dir, e.Arch, e.Host)
}

// hostDirs are what every host has of its own, wherever the rest comes from.
var hostDirs = []string{"proc", "sys", "dev", "run"}

// HostDirs returns the names in the root directory that never come from the
// source: proc, sys, dev and run.
func HostDirs() []layers.Path {
	var ps []layers.Path
	for _, d := range hostDirs {
		ps = append(ps, layers.Path(d))
	}
	return ps
}

// checkPath says why name cannot be the path of a file, or nil.
func checkPath(name string) error {
	switch {
	case name == "":
		return errors.New("an empty file name")
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("the file name %q holds a NUL byte", clip(name))
	case name[0] != '/':
		return fmt.Errorf("the file name %q does not start at the root", clip(name))
	case len(name) > unix.PathMax:
		return fmt.Errorf("the file name %q is longer than a path can be", clip(name))
	case name == "/":
		return nil
	}
	for c := range strings.SplitSeq(name[1:], "/") {
		if !layers.ValidName(c) {
			return fmt.Errorf("the file name %q has the component %q", clip(name), clip(c))
		}
	}
	return nil
}

// clip keeps an error on one readable line.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// layerPath is name, which checkPath found good, as a path from the root.
func layerPath(name string) layers.Path { return layers.Path(name[1:]) }

// underHostDir reports whether name lies in what every host has of its own.
func underHostDir(name string) bool {
	first, _, _ := strings.Cut(name[1:], "/")
	for _, d := range hostDirs {
		if first == d {
			return true
		}
	}
	return false
}

// isDevice reports whether mode is that of a device node.
func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

// movable reports whether files of this type come from the source at all.
// Mode 0 is of images that recorded none: mostly regular files.
func movable(mode uint32) bool {
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return true
	}
	return false
}
