package main

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/seed"
	"github.com/migratefs/migratefs/overlay"
)

const (
	// around is how much the kernel reads around a page that is touched in a mapping,
	// and for who begins to read a file.
	around = 128 << 10

	foretoldSoon  = 64 << 20 // bytes, at most, before the process runs
	foretoldLater = 64 << 20 // bytes, at most, when it does
)

// foretell has fetched, in the background, what the process will need first. Where its
// threads go on, and the files that it is reading, at their offsets, are fetched at once:
// it would wait for them. The rest of what it executes comes when it runs, since much of
// that is never touched.
func (m *mountCommand) foretell(st *stack) {
	cp := st.images.cp
	if cp == nil || st.o.names != seed.Tree || st.o.noPrefetch {
		return
	}
	soon, later := foretold(cp)
	st.fs.Foretell(soon, true)
	if m.leash == nil {
		return // nobody restores; who does so by hand says nothing
	}
	go func() {
		select {
		case <-m.leash.free:
			st.fs.Foretell(later, false)
		case <-m.leash.lost:
		}
	}()
}

// foretold returns what is needed before the process runs, and then.
func foretold(cp *criu.Checkpoint) (soon, later []overlay.Foretold) {
	var pages, offsets, code []overlay.Foretold
	for i := range cp.Files {
		f := &cp.Files[i]
		if f.Place != criu.OnDisk || f.Tree != "/" || f.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		p := layers.Path(strings.TrimPrefix(f.TreePath, "/"))
		for _, r := range f.Refs {
			switch {
			case r.Kind == criu.Mapping:
				for _, off := range r.Next {
					from := max(off-around/2, 0)
					pages = append(pages, overlay.Foretold{Path: p, Off: from, Len: around})
				}
				if r.Prot&unix.PROT_EXEC != 0 {
					code = append(code, overlay.Foretold{Path: p, Off: r.Off, Len: r.Len})
				}
			case r.Kind == criu.Descriptor && r.Pos > 0 && r.Flags&unix.O_ACCMODE != unix.O_WRONLY:
				offsets = append(offsets, overlay.Foretold{Path: p, Off: r.Pos, Len: around})
			}
		}
	}
	return atMost(foretoldSoon, slices.Concat(pages, offsets)), atMost(foretoldLater, code)
}

// atMost returns the first of parts, n bytes of them, each once.
func atMost(n int64, parts []overlay.Foretold) (some []overlay.Foretold) {
	seen := make(map[overlay.Foretold]bool)
	for _, p := range parts {
		if seen[p] {
			continue
		}
		if n -= p.Len; n < 0 {
			break
		}
		seen[p] = true
		some = append(some, p)
	}
	return some
}
