package criu

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"sort"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Fields of mm_entry (mm.proto) and status bits of vma_entry (criu's
// include/image.h); in mappings of files shmid is a file id.
const (
	mmExeFileID = 12
	mmVmas      = 14

	vmaFilePrivate = 1 << 6
	vmaFileShared  = 1 << 7
	vmaSocket      = 1 << 11
	vmaAIORing     = 1 << 13
	vmaMemfd       = 1 << 14
)

// span is a part of a task's memory, end not included.
type span struct{ start, end uint64 }

// taskMemory reads the executable and the mappings of one task. A task may have
// any number of mappings in one entry, so they are decoded one by one.
func (l *loader) taskMemory(pid uint32) error {
	held, err := l.heldPages(fmt.Sprintf("pagemap-%d.img", pid))
	if err != nil {
		return err
	}
	mem := &memory{loader: l, pid: pid, held: held, starts: l.starts[pid]}
	slices.Sort(mem.starts)
	if err := eachMmField(l.fsys, pid, mem.field); err != nil {
		return err
	}
	// Before CRIU 1.3 the mappings stood in an image of their own.
	return ignoreMissing(each(l.fsys, fmt.Sprintf("vmas-%d.img", pid), magicVmas, mem.mapping))
}

// eachMmField calls do with all that the image says of a task's memory, if there is one.
func eachMmField(fsys fs.FS, pid uint32, do func(num protowire.Number, typ protowire.Type, val []byte) error) error {
	im, err := openImage(fsys, fmt.Sprintf("mm-%d.img", pid), magicMm)
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
		if err := do(num, typ, b[n:n+m]); err != nil {
			return im.fail(start, err)
		}
		b = b[n+m:]
	}
	return nil
}

// mmMapping returns the mapping that such a field is; nil if it is none.
func mmMapping(num protowire.Number, typ protowire.Type, val []byte) (*vma.VmaEntry, error) {
	if num != mmVmas || typ != protowire.BytesType {
		return nil, nil
	}
	msg, _ := protowire.ConsumeBytes(val)
	v := new(vma.VmaEntry)
	if err := proto.Unmarshal(msg, v); err != nil {
		return nil, fmt.Errorf("a mapping that is none (%v)", err)
	}
	return v, nil
}

// memory is the memory of one task while it is read.
type memory struct {
	*loader
	pid    uint32
	held   []span   // in order
	starts []uint64 // in order
}

func (m *memory) field(num protowire.Number, typ protowire.Type, val []byte) error {
	if num == mmExeFileID && typ == protowire.VarintType {
		id, _ := protowire.ConsumeVarint(val)
		return m.refer(uint32(id), Ref{Kind: Executable, PID: m.pid})
	}
	v, err := mmMapping(num, typ, val)
	if v == nil || err != nil {
		return err
	}
	return m.mapping(v)
}

func (m *memory) mapping(v *vma.VmaEntry) error {
	if v.GetStatus()&(vmaFilePrivate|vmaFileShared) == 0 || v.GetStatus()&(vmaSocket|vmaAIORing|vmaMemfd) != 0 {
		return nil
	}
	if v.GetEnd() < v.GetStart() || v.GetEnd()-v.GetStart() > math.MaxInt64 || v.GetPgoff() > math.MaxInt64 ||
		v.GetPgoff()+(v.GetEnd()-v.GetStart()) > math.MaxInt64 {
		return fmt.Errorf("a mapping of %#x to %#x", v.GetStart(), v.GetEnd())
	}
	r := Ref{
		Kind: Mapping, PID: m.pid, Off: int64(v.GetPgoff()), Len: int64(v.GetEnd() - v.GetStart()),
		Prot: v.GetProt(), Shared: v.GetStatus()&vmaFileShared != 0,
	}
	i := sort.Search(len(m.held), func(i int) bool { return m.held[i].end > v.GetStart() })
	for ; i < len(m.held) && m.held[i].start < v.GetEnd(); i++ {
		from, to := max(m.held[i].start, v.GetStart()), min(m.held[i].end, v.GetEnd())
		r.Held = append(r.Held, Range{r.Off + int64(from-v.GetStart()), int64(to - from)})
		if err := m.oneMore(); err != nil {
			return err
		}
	}
	m.next(v, &r)
	return m.refer(uint32(v.GetShmid()), r)
}

// next notes the pages of the mapping on which threads go on.
func (m *memory) next(v *vma.VmaEntry, r *Ref) {
	page := pageSize(m.c.Arch)
	i, _ := slices.BinarySearch(m.starts, v.GetStart())
	for ; i < len(m.starts) && m.starts[i] < v.GetEnd(); i++ {
		off := r.Off + int64(m.starts[i]-v.GetStart())
		off -= off % page
		held := slices.ContainsFunc(r.Held, func(h Range) bool { return off >= h.Off && off < h.Off+h.Len })
		if !held && !slices.Contains(r.Next, off) && len(r.Next) < maxNext {
			r.Next = append(r.Next, off)
		}
	}
}

// maxNext bounds Ref.Next; threads mostly wait at one place.
const maxNext = 64

// pageSize is that of machines of this architecture, in bytes.
func pageSize(arch string) int64 {
	switch arch {
	case "amd64", "s390x", "riscv64", "arm":
		return 4096
	}
	return int64(os.Getpagesize()) // the others have more than one
}

// heldPages reads which pages of memory the images hold, and counts them.
func (l *loader) heldPages(name string) (held []span, err error) {
	im, _, err := openPagemap(l.fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer im.close()
	page := uint64(pageSize(l.c.Arch))
	for {
		start := im.off
		var e pagemap.PagemapEntry
		if err := im.next(&e); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		n := pagesIn(&e)
		if n > (math.MaxUint64-e.GetVaddr())/page || l.c.Memory > math.MaxInt64/2-int64(min(n, math.MaxInt64/page)*page) {
			return nil, im.fail(start, fmt.Errorf("%d pages at %#x", n, e.GetVaddr()))
		}
		if err := l.oneMore(); err != nil {
			return nil, im.fail(start, err)
		}
		held = append(held, span{e.GetVaddr(), e.GetVaddr() + n*page})
		l.c.Memory += int64(n * page)
		if e.GetFlags()&pageLazy != 0 {
			l.c.LazyMemory += int64(n * page)
		}
		if e.GetInParent() || e.GetFlags()&pageInParent != 0 {
			l.inParent = true
		}
	}
	slices.SortFunc(held, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(held); i++ { // none covers a part of another: a search needs their ends in order
		held[i].start = max(held[i].start, held[i-1].end)
		held[i].end = max(held[i].end, held[i].start)
	}
	return held, nil
}

// sharedMemory counts what is in memory that tasks share, and looks for the
// images that those of an incremental dump need.
func (l *loader) sharedMemory() error {
	maps, err := l.numbered("pagemap-shmem-")
	if err != nil {
		return err
	}
	for _, m := range maps {
		if _, err := l.heldPages(m.file); err != nil {
			return err
		}
	}
	if !l.inParent {
		return nil
	}
	if _, err := fs.Stat(l.fsys, "parent"); err != nil {
		l.obstacle(Obstacle{
			Level: Blocker, What: "memory", Path: "parent",
			Why:    "the dump is incremental, and the images it builds on are not there",
			Remedy: "copy the directory that the link \"parent\" in the images names as well, to the same place relative to them",
		})
	}
	return nil
}

// startsAt keeps where a thread goes on, and what registers it has in use.
func (l *loader) startsAt(pid uint32, c *core.CoreEntry) {
	l.c.xstate |= c.GetThreadInfo().GetFpregs().GetXsave().GetXstateBv()
	switch {
	case c.GetThreadInfo().GetGpregs() != nil:
		l.starts[pid] = append(l.starts[pid], c.GetThreadInfo().GetGpregs().GetIp())
	case c.GetTiAarch64().GetGpregs() != nil:
		l.starts[pid] = append(l.starts[pid], c.GetTiAarch64().GetGpregs().GetPc())
	}
}

// Mapped returns the parts of the file that tasks have mapped, in order and
// without those that the images hold: executable ones if exec is set, else the
// others.
func (f *File) Mapped(exec bool) []Range {
	var out []Range
	for _, r := range f.Refs {
		if r.Kind != Mapping || (r.Prot&unix.PROT_EXEC != 0) != exec {
			continue
		}
		at := r.Off
		for _, h := range r.Held {
			if h.Off > at {
				out = append(out, Range{at, h.Off - at})
			}
			at = max(at, h.Off+h.Len)
		}
		if end := r.Off + r.Len; end > at {
			out = append(out, Range{at, end - at})
		}
	}
	return union(out)
}

// union sorts ranges and joins those that touch.
func union(in []Range) (out []Range) {
	slices.SortFunc(in, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	for _, r := range in {
		if n := len(out); n > 0 && r.Off <= out[n-1].Off+out[n-1].Len {
			out[n-1].Len = max(out[n-1].Len, r.Off+r.Len-out[n-1].Off)
			continue
		}
		out = append(out, r)
	}
	return out
}
