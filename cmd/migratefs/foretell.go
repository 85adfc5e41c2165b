package main

import (
	"slices"

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

	// A file that is not longer comes whole when it is opened.
	smallFile = 128 << 10

	foretoldNow   = 8 << 20  // bytes, at most, that stand before everything else
	foretoldCode  = 4 << 20  // bytes, at most, of what is executed, before the process runs
	foretoldRead  = 64 << 20 // bytes, at most, that come when it reads
	foretoldLater = 64 << 20 // bytes, at most, when it does
	foretoldDirs  = 32       // directories, of which some small files come when it does
)

// foretell has fetched, in the background, what the process will need first. Where its
// threads go on is fetched at once, and all its files are opened, since CRIU opens one after
// the other; then some of its code. The rest of what it executes comes when it runs, since
// much of that is never touched, and then small files beside its own. What it reads, at its
// offsets, comes for all files when it reads the first: CRIU reads none of it, and the link
// may be slow. This
// host's own copies of programs and libraries come to the upper last, so that nothing that
// is done to them here can change what runs.
func (m *mountCommand) foretell(st *stack) {
	cp := st.images.cp
	if cp == nil || st.o.names != seed.Tree {
		return
	}
	first, read, later := foretold(cp)
	st.fs.ForetellOnRead(read)
	st.fs.Foretell(first)
	then := func() {
		if m.leash != nil { // who restores by hand does not say when the process runs
			st.fs.Foretell(later)
		}
		for _, l := range st.images.seeds {
			twins, _ := l.Twins()
			st.fs.BringUp(twins)
		}
	}
	if m.leash == nil {
		then()
		return
	}
	go func() {
		select {
		case <-m.leash.free:
			then()
		case <-m.leash.lost:
		}
	}()
}

// foretold returns what is needed before the process runs, when it reads, and then.
func foretold(cp *criu.Checkpoint) (first, read, later []overlay.Foretold) {
	var pages, opens, offsets, code, beside []overlay.Foretold
	for i := range cp.Files {
		f := &cp.Files[i]
		p, ok := cp.PathOf(f)
		if !ok || f.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		open := overlay.Foretold{Path: p, When: overlay.Now}
		if f.SizeKnown && f.Size <= smallFile {
			open.Len = f.Size
		}
		for _, r := range f.Refs {
			switch r.Kind {
			case criu.Mapping:
				for _, off := range r.Next {
					from := max(off-around/2, 0)
					pages = append(pages, overlay.Foretold{Path: p, Off: from, Len: around, When: overlay.Now})
				}
				if r.Prot&unix.PROT_EXEC != 0 {
					code = append(code, overlay.Foretold{Path: p, Off: r.Off, Len: r.Len, When: overlay.Soon})
				}
				opens = append(opens, open)
			case criu.Descriptor:
				if r.Pos > 0 && r.Flags&unix.O_ACCMODE != unix.O_WRONLY {
					offsets = append(offsets, overlay.Foretold{Path: p, Off: r.Pos, Len: around, When: overlay.Now})
				}
				opens = append(opens, open)
				beside = append(beside, overlay.Foretold{Path: p, Beside: true, When: overlay.Later})
			case criu.Executable:
				opens = append(opens, open)
			}
		}
		if f.BuildID != nil && len(f.Refs) > 0 { // which CRIU compares
			pages = append(pages, overlay.Foretold{Path: p, Len: around, When: overlay.Now})
		}
	}
	first = slices.Concat(atMost(foretoldNow, slices.Concat(pages, opens)), atMost(foretoldCode, code))
	for i := range code {
		code[i].When = overlay.Later
	}
	return first, atMost(foretoldRead, offsets), slices.Concat(atMost(foretoldLater, code), oneOfEach(foretoldDirs, beside))
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

// oneOfEach returns the first of parts in each directory, of n of them at most.
func oneOfEach(n int, parts []overlay.Foretold) (some []overlay.Foretold) {
	seen := make(map[layers.Path]bool)
	for _, p := range parts {
		if dir, _ := p.Path.Split(); !seen[dir] && len(seen) < n {
			seen[dir] = true
			some = append(some, p)
		}
	}
	return some
}
