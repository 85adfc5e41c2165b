package main

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/migratefs/migratefs/internal/control"
)

const (
	reportEvery = time.Second     // to a mount
	reportLook  = 5 * time.Second // for mounts that are made meanwhile
)

// report tells the mounts of this host that have one of the lowers how far the drain
// is, until end is called.
func (s *drainShow) report(st *stack, shard string) (end func()) {
	dir := socketDir()
	var lowers []control.FileID
	for _, d := range st.dirs {
		if id, err := control.IDOf(d.real); err == nil && d.what == "lower" {
			lowers = append(lowers, id)
		}
	}
	if dir == "" || len(lowers) == 0 {
		return func() {}
	}
	now := func() *control.DrainReport {
		d := s.now()
		d.Shard = shard
		return &control.DrainReport{Lowers: lowers, Drain: *d}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		var told sync.Map // devices of mounts that are told just now
		for {
			for _, dev := range control.Devices(dir) {
				if _, is := told.LoadOrStore(dev, true); is {
					continue
				}
				wg.Go(func() {
					defer told.Delete(dev)
					c := &control.Client{Dir: dir, Device: dev, UID: os.Geteuid()}
					defer c.Close()
					_ = c.ReportDrain(ctx, reportEvery, now) // nothing depends on it
				})
			}
			if sleep(ctx, reportLook) != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
