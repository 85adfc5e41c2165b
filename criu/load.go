package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"
)

// Load reads the checkpoint in the local directory dir. It fails with
// ErrNoImages, *ImageError, *ArchError or the error of the file system.
func Load(dir string) (*Checkpoint, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("image directory %q: %w", dir, bare(err))
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%q is not a directory: give the directory that `criu dump -D` wrote", dir)
	}
	c, err := LoadFS(os.DirFS(dir), dir)
	if err != nil {
		return nil, err
	}
	if c.Arch != runtime.GOARCH {
		return nil, &ArchError{Dir: dir, Arch: c.Arch, Host: runtime.GOARCH}
	}
	return c, nil
}

// LoadFS reads the checkpoint at the root of fsys, which may be of any
// architecture. Dir names it in messages.
func LoadFS(fsys fs.FS, dir string) (*Checkpoint, error) {
	l := &loader{
		fsys:   fsys,
		c:      &Checkpoint{Dir: dir},
		files:  make(map[uint32]*file),
		fdsets: make(map[uint32]uint32),
		mounts: make(map[uint32]*Mount),
	}
	for _, step := range []func() error{
		l.inventory, l.tasks, l.mountpoints, l.fileTable, l.remaps, l.references,
	} {
		if err := step(); err != nil {
			var ie *ImageError
			if errors.As(err, &ie) && dir != "" {
				return nil, fmt.Errorf("checkpoint %q: %w", dir, err)
			}
			return nil, err
		}
	}
	if err := l.collect(); err != nil {
		return nil, fmt.Errorf("checkpoint %q: %w", dir, err)
	}
	return l.c, nil
}

// loader holds what is needed while a checkpoint is read.
type loader struct {
	fsys fs.FS
	c    *Checkpoint

	host   *core.TaskKobjIdsEntry // namespaces of the host that dumped; may be nil
	files  map[uint32]*file       // by file id
	loose  []*file                // without an id: watched paths
	dirs   []string               // that must exist for sockets to be bound in
	fdsets map[uint32]uint32      // files_id -> first task that has it
	mounts map[uint32]*Mount
	things int // files, references and names
}

// Bounds on what is kept in memory. A real process that comes near has more
// descriptors and mappings than the kernel lets it have by default.
const (
	maxThings   = 4 << 20
	maxWarnings = 1000
)

// oneMore counts what is kept; it is an error if that is too much.
func (l *loader) oneMore() error {
	if l.things++; l.things > maxThings {
		return fmt.Errorf("more than %d files and references to them", maxThings)
	}
	return nil
}

func (l *loader) warn(format string, args ...any) {
	if len(l.c.Warnings) == maxWarnings {
		return
	}
	l.c.Warnings = append(l.c.Warnings, fmt.Sprintf(format, args...))
}

func (l *loader) inventory() error {
	var inv inventory.InventoryEntry
	err := one(l.fsys, "inventory.img", magicInventory, &inv)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %q: expected inventory.img; give the directory that `criu dump -D` wrote", ErrNoImages, l.c.Dir)
	}
	if err != nil {
		return err
	}
	l.c.Version = inv.GetImgVersion()
	l.host = inv.GetRootIds()
	return nil
}

// mtypes are the machine types of core images that Go has a name for.
var mtypes = map[core.CoreEntryMarch]string{
	core.CoreEntry_X86_64:      "amd64",
	core.CoreEntry_ARM:         "arm",
	core.CoreEntry_AARCH64:     "arm64",
	core.CoreEntry_PPC64:       "ppc64le",
	core.CoreEntry_S390:        "s390x",
	core.CoreEntry_MIPS:        "mips64le",
	core.CoreEntry_LOONGARCH64: "loong64",
	core.CoreEntry_RISCV64:     "riscv64",
}

// tasks reads the process tree, and of each task its core and its ids.
func (l *loader) tasks() error {
	err := each(l.fsys, "pstree.img", magicPstree, func(p *pstree.PstreeEntry) error {
		if p.GetPid() == 0 || p.GetPid() > 1<<22 {
			return fmt.Errorf("a task with pid %d", p.GetPid())
		}
		l.c.Tasks = append(l.c.Tasks, Task{
			PID: p.GetPid(), PPID: p.GetPpid(), PGID: p.GetPgid(), SID: p.GetSid(), Threads: p.GetThreads(),
		})
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(l.c.Tasks) == 0 {
		return fmt.Errorf("%w in %q: pstree.img lists no task; was the dump completed?", ErrNoImages, l.c.Dir)
	}
	if err != nil {
		return err
	}
	pids := make(map[uint32]bool)
	for _, t := range l.c.Tasks {
		pids[t.PID] = true
	}
	for i := range l.c.Tasks {
		t := &l.c.Tasks[i]
		if !pids[t.SID] || !pids[t.PGID] {
			l.c.ShellJob = true
		}
		if err := l.task(t, i == 0); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) task(t *Task, root bool) error {
	name := fmt.Sprintf("core-%d.img", t.PID)
	var c core.CoreEntry
	if err := one(l.fsys, name, magicCore, &c); errors.Is(err, fs.ErrNotExist) {
		return &ImageError{File: name, Err: errors.New("missing, though pstree.img has the task")}
	} else if err != nil {
		return err
	}
	t.Comm = c.GetTc().GetComm()
	ids := c.GetIds()
	var own core.TaskKobjIdsEntry
	if err := one(l.fsys, fmt.Sprintf("ids-%d.img", t.PID), magicIDs, &own); err == nil {
		ids = &own
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if ids != nil {
		if _, taken := l.fdsets[ids.GetFilesId()]; !taken {
			l.fdsets[ids.GetFilesId()] = t.PID
		}
	}
	if !root {
		return nil
	}
	arch, ok := mtypes[c.GetMtype()]
	if !ok {
		return &ImageError{File: name, Err: fmt.Errorf("machine type %d is not known", c.GetMtype())}
	}
	l.c.Arch = arch
	l.namespaces(t, ids)
	return nil
}

// namespaces compares what the root task lived in with what the host had.
func (l *loader) namespaces(t *Task, ids *core.TaskKobjIdsEntry) {
	if ids == nil || l.host == nil {
		l.c.PidNS = t.PID == 1
		return
	}
	l.c.PidNS = ids.GetPidNsId() != l.host.GetPidNsId()
	l.c.MountNS = ids.GetMntNsId() != l.host.GetMntNsId()
	l.c.NetNS = ids.GetNetNsId() != l.host.GetNetNsId()
	l.c.UserNS = ids.GetUserNsId() != l.host.GetUserNsId()
}

// virtual are the filesystems that hold nothing which stays behind on a disk.
// Ordinary disk filesystems have no type of their own in images.
var virtual = map[mnt.Fstype]bool{
	mnt.Fstype_PROC: true, mnt.Fstype_SYSFS: true, mnt.Fstype_DEVTMPFS: true,
	mnt.Fstype_BINFMT_MISC: true, mnt.Fstype_TMPFS: true, mnt.Fstype_DEVPTS: true,
	mnt.Fstype_PSTORE: true, mnt.Fstype_SECURITYFS: true, mnt.Fstype_FUSECTL: true,
	mnt.Fstype_DEBUGFS: true, mnt.Fstype_CGROUP: true, mnt.Fstype_CGROUP2: true,
	mnt.Fstype_MQUEUE: true, mnt.Fstype_AUTOFS: true, mnt.Fstype_TRACEFS: true,
}

func (l *loader) mountpoints() error {
	names, err := l.numbered("mountpoints-")
	if err != nil {
		return err
	}
	for _, name := range names {
		err := each(l.fsys, name.file, magicMnts, func(m *mnt.MntEntry) error {
			if err := checkPath(m.GetMountpoint()); err != nil {
				return err
			}
			l.c.Mounts = append(l.c.Mounts, Mount{
				ID:       m.GetMntId(),
				Point:    m.GetMountpoint(),
				Virtual:  virtual[mnt.Fstype(m.GetFstype())],
				External: m.GetExtMount() || m.GetExtKey() != "",
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range l.c.Mounts {
		m := &l.c.Mounts[i]
		l.mounts[m.ID] = m
	}
	return nil
}

// numberedImage is an image of which there is one per task, namespace, ...
type numberedImage struct {
	file string
	id   uint32
}

// numbered lists the images called prefix, a number, ".img", by number.
func (l *loader) numbered(prefix string) ([]numberedImage, error) {
	entries, err := fs.ReadDir(l.fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("image directory %q: %w", l.c.Dir, bare(err))
	}
	var out []numberedImage
	for _, e := range entries {
		num, ok := strings.CutSuffix(e.Name(), ".img")
		if !ok {
			continue
		}
		if num, ok = strings.CutPrefix(num, prefix); !ok {
			continue
		}
		if id, err := strconv.ParseUint(num, 10, 32); err == nil {
			out = append(out, numberedImage{e.Name(), uint32(id)})
		}
	}
	slices.SortFunc(out, func(a, b numberedImage) int { return int(int64(a.id) - int64(b.id)) })
	return out, nil
}

// place decides where a file lies.
func (l *loader) place(f *file) Place {
	switch {
	case f.gone:
		return InImages
	case movable(f.Mode) && l.onStorage(f):
		return OnDisk
	}
	return OnHost
}

// onStorage reports whether f's directory stays behind when the process moves.
// Without images of mounts, the directory in the root is all there is to go by.
func (l *loader) onStorage(f *file) bool {
	if underHostDir(f.Path) {
		return false
	}
	if f.mount < 0 || f.mount > math.MaxUint32 {
		return true
	}
	m := l.mounts[uint32(f.mount)]
	return m == nil || !m.Virtual
}

// flagsMode guesses the type that a mode, not recorded, would have.
func flagsMode(refs []Ref) uint32 {
	for _, r := range refs {
		if r.Kind == WorkingDir || r.Kind == RootDir || r.Kind == Descriptor && r.Flags&unix.O_DIRECTORY != 0 {
			return unix.S_IFDIR
		}
	}
	return 0
}
