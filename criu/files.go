package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	fsimg "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	skunix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// file is a File in the making: one file id of the images.
type file struct {
	File
	flags uint32
	pos   int64
	mount int64 // -1: not recorded
	gone  bool  // deleted when it was dumped
}

// fileTable reads what has a path from files.img, or from the images that
// stood in its place before CRIU 3.0: one for each type of descriptor.
func (l *loader) fileTable() error {
	err := each(l.fsys, "files.img", magicFiles, l.fileEntry)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, old := range []error{
		each(l.fsys, "reg-files.img", magicRegFiles, l.regFile),
		each(l.fsys, "unixsk.img", magicUnixSk, l.unixSocket),
		each(l.fsys, "inotify.img", magicInotify, l.inotify),
		each(l.fsys, "inotify-wd.img", magicInotifyWd, l.inotifyWatch),
		each(l.fsys, "fanotify.img", magicFanotify, l.fanotify),
		each(l.fsys, "fanotify-mark.img", magicFanoMark, l.fanotifyMark),
	} {
		if old != nil && !errors.Is(old, fs.ErrNotExist) {
			return old
		}
	}
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
	case fdinfo.FdTypes_UNIXSK:
		return l.unixSocket(e.GetUsk())
	case fdinfo.FdTypes_INOTIFY:
		return l.inotify(e.GetIfy())
	case fdinfo.FdTypes_FANOTIFY:
		return l.fanotify(e.GetFfy())
	}
	if _, known := fdinfo.FdTypes_name[int32(e.GetType())]; !known {
		l.warn("file %d is of type %d, which is not known here", e.GetId(), e.GetType())
	}
	return nil
}

func (l *loader) regFile(r *regfile.RegFileEntry) error {
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

// unixSocket keeps the directory in which a socket is bound: CRIU binds it anew
// there.
func (l *loader) unixSocket(u *skunix.UnixSkEntry) error {
	name := strings.TrimRight(string(u.GetName()), "\x00")
	if name == "" || u.GetName()[0] == 0 {
		return nil // unbound, or an abstract name
	}
	if name[0] != '/' && u.GetNameDir() != "" {
		name = path.Join(u.GetNameDir(), name)
	}
	name = path.Clean(name)
	if err := checkPath(name); err != nil {
		l.warn("a socket is bound to a name that cannot be used: %v", err)
		return nil
	}
	if l.onStorage(&file{File: File{Path: name}, mount: int64(u.GetMntId())}) {
		l.dirs = append(l.dirs, path.Dir(name))
	}
	return l.oneMore()
}

func (l *loader) inotify(e *fsnotify.InotifyFileEntry) error {
	for _, wd := range e.GetWd() {
		if err := l.watch(wd.GetFHandle()); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) inotifyWatch(e *fsnotify.InotifyWdEntry) error {
	return l.watch(e.GetFHandle())
}

func (l *loader) fanotify(e *fsnotify.FanotifyFileEntry) error {
	for _, m := range e.GetMark() {
		if err := l.fanotifyMark(m); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) fanotifyMark(m *fsnotify.FanotifyMarkEntry) error {
	if ie := m.GetIe(); ie != nil {
		return l.watch(ie.GetFHandle())
	}
	return nil
}

// watch adds a watched file. All that images have of it is a path, and that
// only if the dump was asked for it: file handles mean nothing on another host.
func (l *loader) watch(h *fh.FhEntry) error {
	name := h.GetPath()
	if name == "" {
		l.warn("a watched file is known by handle only: dump again with --force-irmap")
		return nil
	}
	if name[0] != '/' {
		name = "/" + name
	}
	if err := checkPath(name); err != nil {
		l.warn("a watch on a name that cannot be used: %v", err)
		return nil
	}
	mount := int64(-1)
	if h.MntId != nil {
		mount = int64(h.GetMntId())
	}
	l.loose = append(l.loose, &file{File: File{Path: name, Refs: []Ref{{Kind: Watch}}}, mount: mount})
	return l.oneMore()
}

// remaps marks what was deleted when it was dumped: ghosts, whose content the
// images hold, and names that were links to a file which has another name yet.
func (l *loader) remaps() error {
	err := each(l.fsys, "remap-fpath.img", magicRemapFpath, func(r *remap.RemapFilePathEntry) error {
		f := l.files[r.GetOrigId()]
		if f == nil {
			return fmt.Errorf("file %d is remapped but described nowhere", r.GetOrigId())
		}
		f.gone = true
		if r.GetRemapType() == remap.RemapType_LINKED {
			if to := l.files[r.GetRemapId()]; to != nil {
				to.Refs = append(to.Refs, Ref{Kind: Other})
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
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
			f := l.files[e.GetId()]
			if f == nil {
				return nil // not a file: a pipe, a socket...
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
	return nil
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

// ignoreMissing: zombies and tasks that share everything have no such image.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (l *loader) refer(id uint32, r Ref) error {
	f := l.files[id]
	if f == nil {
		return fmt.Errorf("file %d is referred to but described nowhere", id)
	}
	f.Refs = append(f.Refs, r)
	return l.oneMore()
}

// Fields of mm_entry (mm.proto) and status bits of vma_entry (criu's
// include/image.h); in mappings of files shmid is a file id.
const (
	mmExeFileID = 12
	mmVmas      = 14

	vmaFilePrivate = 1 << 6
	vmaFileShared  = 1 << 7
)

// taskMemory reads the executable and the mappings of one task. A task may have
// any number of mappings in one entry, so they are decoded one by one.
func (l *loader) taskMemory(pid uint32) error {
	im, err := openImage(l.fsys, fmt.Sprintf("mm-%d.img", pid), magicMm)
	if err != nil {
		return ignoreMissing(err)
	}
	defer im.close()
	start := im.off
	b, err := im.entry(maxMmEntry)
	if err == io.EOF {
		err = im.fail(start, ErrTruncated)
	}
	if err != nil {
		return err
	}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return im.fail(start, errors.New("not an entry of its kind"))
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return im.fail(start, errors.New("not an entry of its kind"))
		}
		if err := l.memoryField(pid, num, typ, b[n:n+m]); err != nil {
			return im.fail(start, err)
		}
		b = b[n+m:]
	}
	return nil
}

func (l *loader) memoryField(pid uint32, num protowire.Number, typ protowire.Type, val []byte) error {
	switch {
	case num == mmExeFileID && typ == protowire.VarintType:
		id, _ := protowire.ConsumeVarint(val)
		return l.refer(uint32(id), Ref{Kind: Executable, PID: pid})
	case num == mmVmas && typ == protowire.BytesType:
		msg, _ := protowire.ConsumeBytes(val)
		var v vma.VmaEntry
		if err := proto.Unmarshal(msg, &v); err != nil {
			return fmt.Errorf("a mapping that is none (%v)", err)
		}
		if v.GetStatus()&(vmaFilePrivate|vmaFileShared) == 0 {
			return nil
		}
		if v.GetEnd() < v.GetStart() || v.GetEnd()-v.GetStart() > math.MaxInt64 || v.GetPgoff() > math.MaxInt64 {
			return fmt.Errorf("a mapping of %#x to %#x", v.GetStart(), v.GetEnd())
		}
		return l.refer(uint32(v.GetShmid()), Ref{
			Kind: Mapping, PID: pid, Off: int64(v.GetPgoff()), Len: int64(v.GetEnd() - v.GetStart()),
			Shared: v.GetStatus()&vmaFileShared != 0,
		})
	}
	return nil
}

// collect turns file ids into files: one for each path and place.
func (l *loader) collect() error {
	type key struct {
		path  string
		place Place
	}
	at := make(map[key]int)
	ids := make([]uint32, 0, len(l.files))
	for id := range l.files {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	all := make([]*file, 0, len(ids)+len(l.loose))
	for _, id := range ids {
		all = append(all, l.files[id])
	}
	for _, f := range append(all, l.loose...) {
		if f.Mode == 0 {
			f.Mode = flagsMode(f.Refs)
		}
		f.Place = l.place(f)
		if f.gone && l.onStorage(f) {
			l.dirs = append(l.dirs, path.Dir(f.Path))
		}
		k := key{f.Path, f.Place}
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
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return int(a.Place) - int(b.Place)
	})
	slices.Sort(l.dirs)
	l.c.dirs = slices.Compact(l.dirs)
	return nil
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
	to.Refs = append(to.Refs, from.Refs...)
	return nil
}
