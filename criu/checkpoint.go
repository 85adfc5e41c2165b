package criu

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Checkpoint is what the images of one `criu dump` say about files.
type Checkpoint struct {
	Dir     string // as given to Load
	Version uint32 // of the image format (inventory.img): 1 or 2
	Arch    string // as runtime.GOARCH names it

	Tasks  []Task
	Files  []File  // sorted by path, each path once per Place
	Mounts []Mount // of the mount namespaces that were dumped; none if tasks ran in the host's

	// Which namespaces the tasks had to themselves, so that CRIU makes them anew.
	PidNS, MountNS, NetNS, UserNS bool

	// ShellJob: a task's session or process group leader is not among the
	// tasks; CRIU wants --shell-job at restore as at dump.
	ShellJob bool

	// Warnings are for people: what Load did not understand or will not carry.
	Warnings []string

	dirs []string // directories in which CRIU makes sockets and deleted files anew
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
	// InImages: deleted while in use; the images hold its content.
	InImages
)

// File is one file that the tasks refer to.
type File struct {
	Path      string // absolute, clean; in a dumped mount namespace from its root
	Place     Place
	Mode      uint32 // type and permissions; 0: not recorded
	Size      int64  // bytes
	SizeKnown bool   // never for what was opened only to append
	BuildID   []byte // of an ELF file, as in its note; nil: none or not recorded
	Refs      []Ref
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
)

// Ref is one reference of a task to a file.
type Ref struct {
	Kind RefKind
	PID  uint32 // 0 for Watch and Other

	// Descriptor:
	FD    uint32
	Flags uint32 // O_*
	Pos   int64  // file offset

	// Mapping: bytes of the file, and MAP_SHARED or not.
	Off, Len int64
	Shared   bool
}

// Mount is one mount of a dumped mount namespace.
type Mount struct {
	ID       uint32
	Point    string // mountpoint, from the namespace's root
	Virtual  bool   // nothing of it lies on storage
	External bool   // CRIU gets it from the caller at restore
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

// movable reports whether files of this type come from the source at all.
// Mode 0 is of images that recorded none: mostly regular files.
func movable(mode uint32) bool {
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return true
	}
	return false
}
