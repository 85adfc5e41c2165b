package criu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// pageLazy is PE_LAZY: the page need not be there when the process goes on. CRIU says so of
// what is private and anonymous, and neither locked, nor in huge pages, nor on a stack in use.
const pageLazy = 1 << 1

// LazyMemory is what may come later of a task's memory.
type LazyMemory struct {
	PID   uint32
	File  string // the image that has it
	Pages []LazyRange
}

// LazyRange is a part of that: addresses, the end not included, and the place in the image.
type LazyRange struct {
	Start, End uint64
	Off        int64
	Wiped      bool // a child has zeros there (MADV_WIPEONFORK, as secrets and states of random numbers have it)
}

// Bytes is how much that is.
func (m *LazyMemory) Bytes() (n int64) {
	for _, r := range m.Pages {
		n += int64(r.End - r.Start)
	}
	return n
}

// Lazy reads what may come later of the memory of the task pid of the images in fsys, which
// are of a machine like this one, and whole (CheckPages). Ranges are in order; those that
// could be one are one.
func Lazy(fsys fs.FS, arch string, pid uint32) (*LazyMemory, error) {
	m := &LazyMemory{PID: pid}
	name := fmt.Sprintf("pagemap-%d.img", pid)
	im, head, err := openPagemap(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil // a zombie has no memory
	}
	if err != nil {
		return nil, err
	}
	defer im.close()
	m.File = fmt.Sprintf("pages-%d.img", head.GetPagesId())
	l := &loader{c: &Checkpoint{}}
	page := uint64(pageSize(arch))
	off := int64(0)
	for {
		start := im.off
		var e pagemap.PagemapEntry
		if err := im.next(&e); err == io.EOF {
			return m, m.markWiped(fsys)
		} else if err != nil {
			return nil, err
		}
		n := pagesIn(&e)
		flags := e.GetFlags()
		switch {
		case flags&pageLazy != 0 && flags&pageInParent != 0:
			return nil, im.fail(start, errors.New("the dump is incremental: its memory cannot come later"))
		case flags&pageLazy != 0 && flags&pagePresent == 0:
			return nil, im.fail(start, errors.New("pages that the images do not hold (criu dump --lazy-pages)"))
		case flags&pagePresent == 0:
			continue
		}
		if n > (1<<62)/page || e.GetVaddr() > 1<<63 || e.GetVaddr()%page != 0 || off > 1<<62-int64(n*page) {
			return nil, im.fail(start, fmt.Errorf("%d pages at %#x", n, e.GetVaddr()))
		}
		if err := l.oneMore(); err != nil {
			return nil, im.fail(start, err)
		}
		if flags&pageLazy != 0 && n > 0 {
			r := LazyRange{Start: e.GetVaddr(), End: e.GetVaddr() + n*page, Off: off}
			last := len(m.Pages) - 1
			if last >= 0 && r.Start < m.Pages[last].End {
				return nil, im.fail(start, fmt.Errorf("pages at %#x are out of order", r.Start))
			}
			if last >= 0 && r.Start == m.Pages[last].End && r.Off == m.Pages[last].Off+int64(r.Start-m.Pages[last].Start) {
				m.Pages[last].End = r.End
			} else {
				m.Pages = append(m.Pages, r)
			}
		}
		off += int64(n * page)
	}
}

// markWiped finds out what is wiped. The kernel does not tell when a process changes that.
func (m *LazyMemory) markWiped(fsys fs.FS) error {
	return eachMmField(fsys, m.PID, func(num protowire.Number, typ protowire.Type, val []byte) error {
		v, err := mmMapping(num, typ, val)
		if err == nil && v.GetMadv()&(1<<unix.MADV_WIPEONFORK) != 0 {
			m.wipe(v.GetStart(), v.GetEnd())
		}
		return err
	})
}

// wipe marks what is between start and end.
func (m *LazyMemory) wipe(start, end uint64) {
	var all []LazyRange
	for _, r := range m.Pages {
		from, to := min(max(r.Start, start), r.End), max(min(r.End, end), r.Start)
		if from >= to {
			all = append(all, r)
			continue
		}
		for _, part := range []LazyRange{{Start: r.Start, End: from, Wiped: r.Wiped}, {Start: from, End: to, Wiped: true}, {Start: to, End: r.End, Wiped: r.Wiped}} {
			if part.Start < part.End {
				part.Off = r.Off + int64(part.Start-r.Start)
				all = append(all, part)
			}
		}
	}
	m.Pages = all
}
