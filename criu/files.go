package criu

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	fsimg "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
)

// file is a File in the making: one file id of the images.
type file struct {
	File
	flags uint32
	pos   int64
	mount int64 // -1: not recorded
	ghost bool  // the images hold it

	linked *file // it had another name: the images refer to it by this one
	isLink bool  // it is that other name
}

// fileTable reads what has a path from files.img, or from the images that
// stood in its place before CRIU 3.0: one for each type of descriptor.
func (l *loader) fileTable() error {
	if err := l.ttyInfos(); err != nil {
		return err
	}
	err := each(l.fsys, "files.img", magicFiles, l.fileEntry)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		l.names()
		return err
	}
	for _, old := range []error{
		each(l.fsys, "reg-files.img", magicRegFiles, l.regFile),
		each(l.fsys, "ext-files.img", magicExtFiles, l.external),
		each(l.fsys, "fifo.img", magicFifo, l.fifo),
		each(l.fsys, "tty.img", magicTTY, l.tty),
		each(l.fsys, "inetsk.img", magicInetSk, l.inetSocket),
		each(l.fsys, "unixsk.img", magicUnixSk, l.unixSocket),
		each(l.fsys, "inotify.img", magicInotify, l.inotify),
		each(l.fsys, "inotify-wd.img", magicInotifyWd, l.inotifyWatch),
		each(l.fsys, "fanotify.img", magicFanotify, l.fanotify),
		each(l.fsys, "fanotify-mark.img", magicFanoMark, l.fanotifyMark),
		each(l.fsys, "pipes.img", magicPipes, l.pipe),
	} {
		if old != nil && !errors.Is(old, fs.ErrNotExist) {
			return old
		}
	}
	l.names()
	if len(l.files) == 0 {
		return fmt.Errorf("%w in %q: neither files.img nor reg-files.img is there; was the dump completed?", ErrNoImages, l.c.Dir)
	}
	return nil
}

func (l *loader) fileEntry(e *fdinfo.FileEntry) error {
	switch e.GetType() {
	case fdinfo.FdTypes_REG:
		if e.GetReg() == nil {
			return fmt.Errorf("file %d is a regular file without its description", e.GetId())
		}
		return l.regFile(e.GetReg())
	case fdinfo.FdTypes_EXT:
		return l.external(e.GetExt())
	case fdinfo.FdTypes_FIFO:
		return l.fifo(e.GetFifo())
	case fdinfo.FdTypes_TTY:
		return l.tty(e.GetTty())
	case fdinfo.FdTypes_INETSK:
		return l.inetSocket(e.GetIsk())
	case fdinfo.FdTypes_UNIXSK:
		return l.unixSocket(e.GetUsk())
	case fdinfo.FdTypes_INOTIFY:
		return l.inotify(e.GetIfy())
	case fdinfo.FdTypes_FANOTIFY:
		return l.fanotify(e.GetFfy())
	case fdinfo.FdTypes_PIPE:
		return l.pipe(e.GetPipe())
	}
	if _, known := fdinfo.FdTypes_name[int32(e.GetType())]; !known {
		l.warn("file %d is of type %d, which is not known here", e.GetId(), e.GetType())
	}
	l.others[e.GetId()] = true // memory files are mapped, for one
	return l.oneMore()
}

func (l *loader) regFile(r *regfile.RegFileEntry) error {
	if r.GetExt() { // its name is not a path but the key that the dump was given
		l.obstacle(Obstacle{
			Level: Blocker, What: "descriptor", Path: r.GetName(),
			Why:    "the dump left it to whoever restores (--external file[...]), and a descriptor cannot be handed to CRIU here",
			Remedy: "dump again without that",
		})
		l.others[r.GetId()] = true
		return l.oneMore()
	}
	if err := checkPath(r.GetName()); err != nil {
		return err
	}
	if l.files[r.GetId()] != nil {
		return fmt.Errorf("file %d is described twice", r.GetId())
	}
	if r.GetSize() > math.MaxInt64 || r.GetPos() > math.MaxInt64 {
		return fmt.Errorf("file %q has a size of %d and an offset of %d", clip(r.GetName()), r.GetSize(), r.GetPos())
	}
	if err := l.oneMore(); err != nil {
		return err
	}
	l.files[r.GetId()] = &file{
		File: File{
			Path:      r.GetName(),
			Mode:      r.GetMode(),
			Size:      int64(r.GetSize()),
			SizeKnown: r.Size != nil,
			BuildID:   buildID(r.GetBuildId()),
		},
		flags: r.GetFlags(),
		pos:   int64(r.GetPos()),
		mount: int64(r.GetMntId()),
	}
	return nil
}

// buildID turns the words in which CRIU stores a build-id into its bytes. CRIU
// copies the note as it lies in memory; every machine it runs on that has a
// build-id in use is little-endian, but for s390, which nobody restores here.
func buildID(words []uint32) []byte {
	if len(words) == 0 || len(words) > 16 {
		return nil
	}
	b := make([]byte, 0, 4*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// references reads who refers to which file, and how.
func (l *loader) references() error {
	sets, err := l.numbered("fdinfo-")
	if err != nil {
		return err
	}
	for _, set := range sets {
		pid := l.fdsets[set.id]
		if pid == 0 {
			pid = set.id // before CRIU numbered tables, they were numbered by task
		}
		err := each(l.fsys, set.file, magicFdinfo, func(e *fdinfo.FdinfoEntry) error {
			f := l.byID(e.GetId())
			if f == nil { // a pipe, an event counter...
				l.holders[e.GetId()] = pid
				return l.oneMore()
			}
			f.Refs = append(f.Refs, Ref{Kind: Descriptor, PID: pid, FD: e.GetFd(), Flags: f.flags, Pos: f.pos})
			return l.oneMore()
		})
		if err != nil {
			return err
		}
	}
	for _, t := range l.c.Tasks {
		if err := l.taskDirs(t.PID); err != nil {
			return err
		}
		if err := l.taskMemory(t.PID); err != nil {
			return err
		}
	}
	return l.sharedMemory()
}

func (l *loader) taskDirs(pid uint32) error {
	name := fmt.Sprintf("fs-%d.img", pid)
	return ignoreMissing(each(l.fsys, name, magicFs, func(e *fsimg.FsEntry) error {
		if err := l.refer(e.GetCwdId(), Ref{Kind: WorkingDir, PID: pid}); err != nil {
			return err
		}
		return l.refer(e.GetRootId(), Ref{Kind: RootDir, PID: pid})
	}))
}

func (l *loader) refer(id uint32, r Ref) error {
	f := l.byID(id)
	if f == nil && l.others[id] {
		return nil
	}
	if f == nil {
		return fmt.Errorf("file %d is referred to but described nowhere", id)
	}
	f.Refs = append(f.Refs, r)
	return l.oneMore()
}

// collect turns file ids into files: one for each path and place.
func (l *loader) collect() error {
	all := make([]*file, 0, len(l.files)+len(l.loose))
	for _, id := range slices.Sorted(maps.Keys(l.files)) {
		all = append(all, l.files[id])
	}
	all = append(all, l.loose...)
	for _, f := range all {
		if to := f.linked; to != nil { // what is done to it is done to that file
			to.Refs = append(to.Refs, f.Refs...)
			if !to.SizeKnown && to.BuildID == nil { // CRIU makes no full record of it
				to.Size, to.SizeKnown, to.BuildID = f.Size, f.SizeKnown, f.BuildID
			}
			if to.Mode == 0 {
				to.Mode = f.Mode
			}
		}
	}
	type key struct {
		path  string
		place Place
		mount string // in which tree, and where: two namespaces may have one path
	}
	at := make(map[key]int)
	for _, f := range all {
		l.settle(f)
		k := key{f.Path, f.Place, f.Tree + f.TreePath}
		i, seen := at[k]
		if !seen {
			at[k] = len(l.c.Files)
			l.c.Files = append(l.c.Files, f.File)
			continue
		}
		if err := merge(&l.c.Files[i], &f.File); err != nil {
			return err
		}
	}
	slices.SortFunc(l.c.Files, func(a, b File) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), int(a.Place)-int(b.Place), strings.Compare(a.Tree+a.TreePath, b.Tree+b.TreePath))
	})
	for i := range l.c.Files {
		if t := l.trees[l.c.Files[i].Tree]; t != nil {
			t.Files++
		}
	}
	l.directories()
	return nil
}

// settle decides where a file lies.
func (l *loader) settle(f *file) {
	if f.Mode == 0 {
		f.Mode = flagsMode(f.Refs)
	}
	if f.isLink && len(f.Refs) == 0 {
		f.Refs = []Ref{{Kind: Other}}
	}
	f.Place = l.place(f)
	fifo := f.Mode&unix.S_IFMT == unix.S_IFIFO && !f.ghost && f.linked == nil && l.onStorage(f) // its name is the source's
	if f.Place == OnDisk || fifo {
		l.locate(f)
	}
	f.Stranded = isDevice(f.Mode) && l.onStorage(f)
	if f.ghost || f.linked != nil {
		l.dirs = append(l.dirs, f)
	}
}

// directories lists those that have to be there for something to be made in them.
func (l *loader) directories() {
	for _, f := range l.dirs {
		dir := &file{File: File{Path: path.Dir(f.Path)}, mount: f.mount}
		if !l.onStorage(dir) {
			continue
		}
		l.locate(dir)
		l.c.dirs = append(l.c.dirs, inTree{dir.Tree, dir.TreePath})
	}
	slices.SortFunc(l.c.dirs, func(a, b inTree) int {
		return cmp.Or(strings.Compare(a.path, b.path), strings.Compare(a.key, b.key))
	})
	l.c.dirs = slices.Compact(l.c.dirs)
}

// merge adds what one more description of the same file says.
func merge(to, from *File) error {
	if to.Place != InImages { // any number of deleted files may have had one name
		if to.Mode != 0 && from.Mode != 0 && to.Mode != from.Mode {
			return fmt.Errorf("the images give file %q the modes %#o and %#o: it changed during the dump, dump again", clip(to.Path), to.Mode, from.Mode)
		}
		if to.SizeKnown && from.SizeKnown && to.Size != from.Size {
			return fmt.Errorf("the images give file %q the sizes %d and %d: it changed during the dump, dump again", clip(to.Path), to.Size, from.Size)
		}
	}
	if to.Mode == 0 {
		to.Mode = from.Mode
	}
	if !to.SizeKnown && from.SizeKnown {
		to.Size, to.SizeKnown = from.Size, true
	}
	if to.BuildID == nil {
		to.BuildID = from.BuildID
	}
	to.Deleted = to.Deleted || from.Deleted
	to.Refs = append(to.Refs, from.Refs...)
	return nil
}
