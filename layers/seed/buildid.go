package seed

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Of an ELF file whose build-id the seed has, the header and the notes are read: another
// build of the same size is another program. What CRIU looks at for its own check is
// looked at here (criu/files-reg.c): the first GNU build-id in a note segment.

const (
	elfHead   = 4096    // bytes that mostly hold the header, the program headers and the notes
	elfReach  = 1 << 20 // no note is looked for beyond: CRIU maps no more
	elfBehind = 36      // behind a note segment: a note with a SHA-1
	elfPhdrs  = 256     // program headers that are looked at
	elfAtOnce = 16      // files
)

var errNoBuildID = errors.New("no build-id")

// compareBuilds reads the build-ids of those of nodes that are as they were by all
// else, and notes in found which are not.
func (l *Layer) compareBuilds(ctx context.Context, nodes []*node, found []string) error {
	if l.verify == Off {
		return nil
	}
	errs := make([]error, len(nodes))
	slots := make(chan struct{}, elfAtOnce)
	var all sync.WaitGroup
	for i, n := range nodes {
		a, seen := n.current()
		if n.entry == nil || n.entry.BuildID == nil || found[i] != "" || !seen || !a.IsRegular() {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			found[i], errs[i] = l.compareBuild(ctx, n, &a)
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil && !errors.Is(err, layers.ErrOffline) {
			return &layers.PathError{Op: "read", Layer: l.inner.ID(), Path: nodes[i].src, Err: err}
		}
	}
	return nil
}

func (l *Layer) compareBuild(ctx context.Context, n *node, a *layers.Attr) (what string, _ error) {
	f, err := l.inner.Open(ctx, n.src, a)
	switch {
	case errors.Is(err, layers.ErrStale), errors.Is(err, unix.ENOENT):
		return "changed just now", nil
	case err != nil:
		return "", err
	}
	defer f.Close()
	have, err := buildID(func(b []byte, off int64) (int, error) { return f.ReadAt(ctx, b, off) })
	switch {
	case errors.Is(err, layers.ErrStale):
		return "changed just now", nil
	case errors.Is(err, errNoBuildID):
		return fmt.Sprintf("no build-id, was %x", n.entry.BuildID), nil
	case err != nil:
		return "", err
	case !sameBuild(have, n.entry.BuildID):
		return fmt.Sprintf("build-id %x, was %x", have, n.entry.BuildID), nil
	}
	return "", nil
}

// sameBuild compares a build-id with one that CRIU has recorded, in whole words.
func sameBuild(have, want []byte) bool {
	n := min(len(have), len(want))
	return n > 0 && len(have)-n < 4 && bytes.Equal(have[:n], want[:n])
}

// buildID returns the build-id of the ELF file that read reads, as io.ReaderAt does;
// errNoBuildID if it has none, or is no ELF file. Nothing in the file is believed.
func buildID(read func(b []byte, off int64) (int, error)) ([]byte, error) {
	head := make([]byte, elfHead)
	n, err := read(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	head = head[:n]
	part := func(off, size uint64) ([]byte, error) {
		switch {
		case off > elfReach || size > elfReach:
			return nil, errNoBuildID
		case off+size <= uint64(len(head)):
			return head[off : off+size], nil
		}
		b := make([]byte, size)
		n, err := read(b, int64(off))
		if err == io.EOF {
			err = nil
		}
		return b[:n], err
	}
	h, ok := elfHeaderOf(head)
	if !ok {
		return nil, errNoBuildID
	}
	table, err := part(h.phoff, uint64(h.phnum)*uint64(h.phsize))
	if err != nil {
		return nil, err
	}
	for ; len(table) >= h.phsize; table = table[h.phsize:] {
		off, size, align, isNote := h.segment(table[:h.phsize])
		if !isNote {
			continue
		}
		notes, err := part(off, size)
		if errors.Is(err, errNoBuildID) {
			continue
		} else if err != nil {
			return nil, err
		}
		id := buildIDNote(h.order, notes, align)
		if id == nil {
			// Go's linker leaves its GNU note behind the end of the segment, and CRIU
			// finds it there.
			if notes, err = part(off, size+elfBehind); err == nil {
				id = buildIDNote(h.order, notes, align)
			} else if !errors.Is(err, errNoBuildID) {
				return nil, err
			}
		}
		if id != nil {
			return id, nil
		}
	}
	return nil, errNoBuildID
}

// elfHeader is what matters of an ELF header (elf(5)).
type elfHeader struct {
	order         binary.ByteOrder
	wide          bool // 64 bits
	phoff         uint64
	phsize, phnum int
}

func elfHeaderOf(b []byte) (h elfHeader, ok bool) {
	if len(b) < 64 || string(b[:4]) != "\x7fELF" {
		return h, false
	}
	h.wide = b[4] == 2
	h.order = binary.LittleEndian
	if b[5] == 2 {
		h.order = binary.BigEndian
	}
	least := 32
	if h.wide {
		least = 56
		h.phoff = h.order.Uint64(b[32:])
		h.phsize, h.phnum = int(h.order.Uint16(b[54:])), int(h.order.Uint16(b[56:]))
	} else {
		h.phoff = uint64(h.order.Uint32(b[28:]))
		h.phsize, h.phnum = int(h.order.Uint16(b[42:])), int(h.order.Uint16(b[44:]))
	}
	h.phnum = min(h.phnum, elfPhdrs)
	return h, h.phsize >= least
}

// segment returns where the notes of a program header lie.
func (h *elfHeader) segment(b []byte) (off, size, align uint64, isNote bool) {
	const ptNote = 4
	isNote = h.order.Uint32(b) == ptNote
	if h.wide {
		return h.order.Uint64(b[8:]), h.order.Uint64(b[32:]), h.order.Uint64(b[48:]), isNote
	}
	return uint64(h.order.Uint32(b[4:])), uint64(h.order.Uint32(b[16:])), uint64(h.order.Uint32(b[28:])), isNote
}

// buildIDNote returns the GNU build-id among notes, or nil.
func buildIDNote(order binary.ByteOrder, notes []byte, align uint64) []byte {
	const ntGNUBuildID = 3
	if align != 8 {
		align = 4
	}
	up := func(n uint64) uint64 { return (n + align - 1) / align * align }
	for len(notes) >= 12 {
		name, desc, typ := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:])), order.Uint32(notes[8:])
		from := up(12 + name)
		if from+desc > uint64(len(notes)) {
			return nil
		}
		if typ == ntGNUBuildID && name == 4 && string(notes[12:16]) == "GNU\x00" {
			return notes[from : from+desc]
		}
		notes = notes[min(up(from+desc), uint64(len(notes))):]
	}
	return nil
}
