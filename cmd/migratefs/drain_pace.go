package main

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// drainPace keeps a drain from taking what others need: bandwidth, and the host.
type drainPace struct {
	rate        int64 // bytes a second; 0: any
	maxLoad     float64
	maxPressure float64

	mu     sync.Mutex // protects what follows
	free   time.Time  // when what was copied so far will have been paid for
	looked time.Time
	busy   bool
}

// ahead is how much of what was not used of the bandwidth may be made up for.
const ahead = time.Second

// moved is told that n bytes were copied, and waits until more may be.
func (p *drainPace) moved(ctx context.Context, n int64) error {
	if p.rate == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if p.free.Before(now.Add(-ahead)) {
		p.free = now.Add(-ahead)
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	return sleep(ctx, wait)
}

// hold waits until the host is not too busy.
func (p *drainPace) hold(ctx context.Context) error {
	for p.tooBusy() {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// tooBusy looks once a second.
func (p *drainPace) tooBusy() bool {
	if p.maxLoad == 0 && p.maxPressure == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.looked) > time.Second {
		p.looked = time.Now()
		p.busy = p.maxLoad > 0 && load() > p.maxLoad || p.maxPressure > 0 && pressure() > p.maxPressure
	}
	return p.busy
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load is the load average of the last minute (proc_loadavg(5)); 0 if unknown.
func load() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	f, _ := strconv.ParseFloat(first, 64)
	return f
}

// pressure is how many percent of the last ten seconds some task waited for I/O
// (Documentation/accounting/psi.rst); 0 if unknown.
func pressure() float64 {
	b, _ := os.ReadFile("/proc/pressure/io")
	_, rest, _ := strings.Cut(string(b), "some avg10=")
	first, _, _ := strings.Cut(rest, " ")
	f, _ := strconv.ParseFloat(first, 64)
	return f
}
