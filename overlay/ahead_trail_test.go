package overlay

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// scouted is a faraway source that knows in which order its directories are walked through.
type scouted struct {
	*faraway
	order []layers.Path
}

func (s *scouted) Coming(from layers.Path, names int) (next []layers.Listed) {
	for _, p := range s.order[slices.Index(s.order, from)+1:] {
		es, _ := s.ReadDir(context.Background(), p)
		if names -= len(es); names < 0 && len(next) > 0 {
			break
		}
		next = append(next, layers.Listed{Path: p, Entries: es})
	}
	return next
}

// manyDirs are n directories with some small files each.
func manyDirs(far *faraway, n, files int) (*scouted, []map[string][]byte) {
	s := &scouted{faraway: far}
	all := make([]map[string][]byte, n)
	for i := range n {
		d := fmt.Sprintf("d%03d", i)
		all[i] = smallFiles(far, d, files)
		s.order = append(s.order, layers.Path(d))
	}
	return s, all
}

// Who reads the small files of one directory after the other waits for a few exchanges, not
// for one in each directory, and nothing comes twice.
func TestSearchThroughSmallDirectories(t *testing.T) {
	for _, files := range []int{1, 3} {
		far := &faraway{delay: time.Millisecond}
		s, all := manyDirs(far, 200, files)
		w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer = s })
		sum := int64(0)
		for i, d := range s.order {
			names := w.ls(string(d))
			slices.Sort(names)
			for _, name := range names {
				p := string(d) + "/" + name
				got, errno := w.readFile(p)
				if errno != 0 || !bytes.Equal(got, all[i][p]) {
					t.Fatalf("%s: %d bytes, %v", p, len(got), errno)
				}
				sum += int64(len(got))
			}
		}
		w.fs.ahead.work.Wait()
		if far.given != sum || len(far.brings) != 200*files {
			t.Errorf("%d bytes came of %d, %d files of %d", far.given, sum, len(far.brings), 200*files)
		}
		if waits := far.opens + far.reads + far.bulk; waits > 20 {
			t.Errorf("%d exchanges that somebody waited for", waits)
		}
		if far.burst > 60 {
			t.Errorf("%d bursts for %d directories", far.burst, len(s.order))
		}
	}
}

// What comes for nothing is bounded by what was opened, also over many directories.
func TestTrailInVain(t *testing.T) {
	far := &faraway{}
	s, _ := manyDirs(far, 300, 10)
	w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer = s })
	opened := 0
	for i, d := range s.order {
		names := w.ls(string(d))
		if i%10 != 0 {
			continue
		}
		_, errno := w.readFile(string(d) + "/" + names[0])
		w.must("read", errno)
		opened++
		w.fs.ahead.work.Wait()
		// Those beside it, and what comes after.
		if most := opened*(siblingsFirst+1) + siblingsFirst + siblingsMore*opened; len(far.brings) > most {
			t.Fatalf("%d files came for %d", len(far.brings), opened)
		}
	}
	tr := &w.fs.ahead.trail
	if tr.files < 0 || tr.files > siblingsMost || tr.bytes < 0 || tr.credit > siblingsMost {
		t.Errorf("%d files, %d bytes and %d credits", tr.files, tr.bytes, tr.credit)
	}
}

// What is under way of the directories to come is bounded, in files, bytes and requests, and
// is counted as what may be fetched ahead at all.
func TestTrailIsBounded(t *testing.T) {
	far := &faraway{gate: make(chan struct{})}
	s, _ := manyDirs(far, 400, 5)
	w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer = s })
	a := &w.fs.ahead
	var readers sync.WaitGroup
	a.trail.credit = siblingsMost - siblingsFirst // as after a long search
	for _, d := range s.order[:3] {
		names := w.ls(string(d))
		id, errno := w.find(string(d) + "/" + names[0])
		w.must("find", errno)
		readers.Go(func() { _, _ = w.readNode(id) })
		until(t, "files are asked for", func() bool {
			a.trail.mu.Lock()
			defer a.trail.mu.Unlock()
			return a.trail.files > 0
		})
	}
	a.trail.mu.Lock()
	files := a.trail.files
	a.trail.mu.Unlock()
	a.mu.Lock()
	bytes, jobs := a.bytes, a.jobs
	a.mu.Unlock()
	if files > siblingsMost || bytes == 0 || bytes > siblingsBytes || jobs > aheadJobs {
		t.Errorf("%d files of %d bytes under way, %d jobs", files, bytes, jobs)
	}
	close(far.gate)
	readers.Wait()
	a.work.Wait()
}

// With prefetch=off nothing comes of the directories after.
func TestNoTrail(t *testing.T) {
	far := &faraway{}
	s, all := manyDirs(far, 20, 3)
	w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer, c.NoPrefetch = s, true })
	for i, d := range s.order {
		for _, name := range w.ls(string(d)) {
			p := string(d) + "/" + name
			if got, errno := w.readFile(p); errno != 0 || !bytes.Equal(got, all[i][p]) {
				t.Fatalf("%s: %d bytes, %v", p, len(got), errno)
			}
		}
	}
	if far.ahead+far.burst+far.bulk != 0 {
		t.Errorf("%d reads, %d bursts and %d bulk reads", far.ahead, far.burst, far.bulk)
	}
}

// Where what comes next has changed since it was listed, whoever opens it gets what is there.
func TestTrailChanges(t *testing.T) {
	far := &faraway{}
	s, all := manyDirs(far, 30, 3)
	w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer = s })
	for i, d := range s.order {
		for _, name := range w.ls(string(d)) {
			p := string(d) + "/" + name
			if i > 3 && i%2 == 0 {
				w.fs.ahead.work.Wait() // some of these have come
				all[i][p] = bytes.ToUpper(all[i][p])
				far.put(layers.Path(p), all[i][p])
				far.count(func() { far.files[layers.Path(p)].mtime += 5 })
				w.ls(string(d))
			}
			if got, errno := w.readFile(p); errno != 0 || !bytes.Equal(got, all[i][p]) {
				t.Fatalf("%s: %d bytes, %v", p, len(got), errno)
			}
		}
	}
}
