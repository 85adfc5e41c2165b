package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"
)

// Load reads the checkpoint at the local path: a directory that CRIU wrote, or
// an archive as container engines make them. It fails with ErrNoImages,
// *ImageError, *ArchError or the error of the file system.
func Load(path string) (*Checkpoint, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("image directory %q: %w", path, bare(err))
	}
	var c *Checkpoint
	switch {
	case st.IsDir():
		c, err = LoadFS(os.DirFS(path), path)
	case st.Mode().IsRegular():
		c, err = loadArchive(path)
	default:
		err = fmt.Errorf("%q is %w", path, errNotArchive)
	}
	if err != nil {
		return nil, err
	}
	if c.Arch != runtime.GOARCH {
		return nil, &ArchError{Dir: path, Arch: c.Arch, Host: runtime.GOARCH}
	}
	return c, nil
}

func loadArchive(path string) (*Checkpoint, error) {
	a, err := readArchive(path)
	if errors.Is(err, errNotArchive) {
		return nil, fmt.Errorf("%q is %w: give the directory that `criu dump -D` wrote, or what podman container checkpoint --export did", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint %q: %w", path, bare(err))
	}
	return load(a, path, a)
}

// LoadFS reads the checkpoint at the root of fsys, which may be of any
// architecture. Dir names it in messages.
func LoadFS(fsys fs.FS, dir string) (*Checkpoint, error) { return load(fsys, dir, nil) }

// load reads the images in fsys; from is the archive that they are in, or nil.
func load(fsys fs.FS, dir string, from *archive) (*Checkpoint, error) {
	l := &loader{
		fsys:   fsys,
		c:      &Checkpoint{Dir: dir, fsys: fsys},
		files:  make(map[uint32]*file),
		alias:  make(map[uint32]*file),
		others: make(map[uint32]bool),
		fdsets: make(map[uint32]uint32),
		starts: make(map[uint32][]uint64),
		mounts: make(map[uint32]*Mount),
		parts:  make(map[*Mount]part),
		trees:  make(map[string]*Tree),
		named:  make(map[uint32]name),
		ttys:   make(map[uint32]string),

		pipes: make(map[uint32]map[uint32]uint32), holders: make(map[uint32]uint32),
	}
	steps := []func() error{
		l.inventory, l.origin, l.tasks, l.mountpoints, l.fileTable, l.remaps, l.references, l.locks, l.leftRunning, l.listing, l.collect,
	}
	if from != nil {
		steps = append(steps, func() error { return l.container(from) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			if !errors.Is(err, ErrNoImages) && dir != "" { // which names it
				return nil, fmt.Errorf("checkpoint %q: %w", dir, err)
			}
			return nil, err
		}
	}
	l.c.setHostPaths()
	l.fileObstacles()
	return l.c, nil
}

// loader holds what is needed while a checkpoint is read.
type loader struct {
	fsys fs.FS
	c    *Checkpoint

	host    *core.TaskKobjIdsEntry // namespaces of the host that dumped; may be nil
	files   map[uint32]*file       // by file id
	alias   map[uint32]*file       // ids of what has its name from a file: FIFOs, terminals, sockets
	others  map[uint32]bool        // ids of what is no file
	loose   []*file                // without an id: watched paths, sockets
	dirs    []*file                // beside which something must be made: in their directories
	fdsets  map[uint32]uint32      // files_id -> first task that has it
	starts  map[uint32][]uint64    // addresses at which the threads of a task go on
	mounts  map[uint32]*Mount
	parts   map[*Mount]part
	trees   map[string]*Tree
	named   map[uint32]name              // by file id
	ttys    map[uint32]string            // kind of terminal, by CRIU's number of it
	pipes   map[uint32]map[uint32]uint32 // by its number: file ids by access mode
	holders map[uint32]uint32            // tasks that have what is no file open, by file id
	lsm     string                       // of the host that dumped

	inParent bool // some memory is in the images of an earlier dump

	root   *Mount // of the root task; nil if it saw the host's mounts
	rootNS uint32
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

// runtimeFile is what runc and crun write among the images: the container's descriptors.
const runtimeFile = "descriptors.json"

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
	_, err = fs.Stat(l.fsys, runtimeFile)
	l.c.ByRuntime = err == nil
	l.host = inv.GetRootIds()
	if t := inv.GetLsmtype(); t != inventory.Lsmtype_NO_LSM {
		l.lsm = strings.ToLower(t.String())
	}
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

// taskDead is the state of a zombie (CRIU's compel/include/uapi/task-state.h).
const taskDead = 2

func (l *loader) task(t *Task, root bool) error {
	name := fmt.Sprintf("core-%d.img", t.PID)
	var c core.CoreEntry
	if err := one(l.fsys, name, magicCore, &c); errors.Is(err, fs.ErrNotExist) {
		return &ImageError{File: name, Err: errors.New("missing, though pstree.img has the task")}
	} else if err != nil {
		return err
	}
	t.Comm = c.GetTc().GetComm()
	if c.GetTc().GetTaskState() == taskDead {
		t.Threads = nil // CRIU writes whatever was in its memory
	}
	l.confined(&c)
	l.startsAt(t.PID, &c)
	for _, tid := range t.Threads {
		if err := l.thread(t.PID, tid); err != nil {
			return err
		}
	}
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
	l.rootNS = ids.GetMntNsId()
	l.c.PidNS = ids.GetPidNsId() != l.host.GetPidNsId()
	l.c.MountNS = ids.GetMntNsId() != l.host.GetMntNsId()
	l.c.NetNS = ids.GetNetNsId() != l.host.GetNetNsId()
	l.c.UserNS = ids.GetUserNsId() != l.host.GetUserNsId()
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
		return nil, fmt.Errorf("list of images: %w", bare(err))
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

// flagsMode guesses the type that a mode, not recorded, would have.
func flagsMode(refs []Ref) uint32 {
	for _, r := range refs {
		if r.Kind == WorkingDir || r.Kind == RootDir || r.Kind == Descriptor && r.Flags&unix.O_DIRECTORY != 0 {
			return unix.S_IFDIR
		}
	}
	return 0
}
