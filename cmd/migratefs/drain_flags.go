package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/migratefs/migratefs/overlay"
)

// config is what the flags say.
func (f *drainFlags) config() (cfg overlay.DrainConfig, p *drainPace, err error) {
	s := &cfg.Select
	now := time.Now()
	p = &drainPace{maxLoad: f.maxLoad, maxPressure: f.maxPressure}
	for _, set := range []func() error{
		func() error { return whenFlag(&s.Newer, "newer", f.newer, now) },
		func() error { return whenFlag(&s.Older, "older", f.older, now) },
		func() error { return clockFlag(&s.Clock, f.clock) },
		func() error { return sizeFlag(&s.MinSize, "min-size", f.minSize) },
		func() error { return sizeFlag(&s.MaxSize, "max-size", f.maxSize) },
		func() error { return idsFlag(&s.UIDs, "user", f.users) },
		func() error { return idsFlag(&s.GIDs, "group", f.groups) },
		func() error { return sizeFlag(&p.rate, "bwlimit", f.bandwidth) },
		func() error { return shardFlag(&cfg, f.shard) },
	} {
		if err := set(); err != nil {
			return cfg, nil, err
		}
	}
	switch {
	case f.jobs < 1 || f.jobs > 1024:
		return cfg, nil, usageErrorf("migratefs drain: --jobs %d: give a number from 1 to 1024", f.jobs)
	case f.maxLoad < 0 || f.maxPressure < 0:
		return cfg, nil, usageErrorf("migratefs drain: --max-load and --max-pressure are not negative")
	case f.maxSize != "" && s.MaxSize == 0:
		s.MaxSize = -1 // empty files alone
	}
	cfg.Jobs, cfg.Verify = f.jobs, f.checksum
	return cfg, p, nil
}

// whenFlag reads a time: an age, or a date of this host.
func whenFlag(t *time.Time, name, v string, now time.Time) error {
	if v == "" {
		return nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339} {
		if when, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			*t = when
			return nil
		}
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour, 'y': 365 * 24 * time.Hour}
	unit, ok := units[v[len(v)-1]]
	n, err := strconv.ParseFloat(v[:len(v)-1], 64)
	if !ok || err != nil || n < 0 || n*unit.Hours() > 24*365*1000 {
		return usageErrorf("migratefs drain: --%s %q: give an age, as 12h, 30d or 1y, or a date, as 2026-01-31", name, v)
	}
	*t = now.Add(-time.Duration(n * float64(unit)))
	return nil
}

func clockFlag(c *overlay.Clock, v string) error {
	clocks := map[string]overlay.Clock{"mtime": overlay.Mtime, "atime": overlay.Atime, "ctime": overlay.Ctime}
	k, ok := clocks[v]
	if !ok {
		return usageErrorf("migratefs drain: --time %q: give mtime, atime or ctime", v)
	}
	*c = k
	return nil
}

// sizeFlag reads a number of bytes; K, M, G, T and P are powers of 1024.
func sizeFlag(n *int64, name, v string) error {
	if v == "" {
		return nil
	}
	digits, shift := v, 0
	if i := strings.IndexByte("KMGTP", v[len(v)-1]&^0x20); i >= 0 {
		digits, shift = v[:len(v)-1], 10*(i+1)
	}
	x, err := strconv.ParseFloat(digits, 64)
	if x *= float64(int64(1) << shift); err != nil || !(x >= 0 && x < 1<<62) {
		return usageErrorf("migratefs drain: --%s %q: give a number of bytes, as 4096 or 10M", name, v)
	}
	*n = int64(x)
	if name == "bwlimit" && *n == 0 {
		return usageErrorf("migratefs drain: --bwlimit %q: nothing would ever move", v)
	}
	return nil
}

// idsFlag reads users or groups, by number or by name.
func idsFlag(ids *[]uint32, what string, names []string) error {
	for _, name := range names {
		n, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			if n, err = idOfName(what, name); err != nil {
				return usageErrorf("migratefs drain: --%s %q: %v", what, name, err)
			}
		}
		*ids = append(*ids, uint32(n))
	}
	return nil
}

// idOfName asks the host's databases, those of its directory service included.
func idOfName(what, name string) (uint64, error) {
	database := map[string]string{"user": "passwd", "group": "group"}[what]
	out, err := exec.Command("getent", "--", database, name).Output()
	f := strings.Split(string(out), ":")
	if err != nil || len(f) < 3 {
		return 0, fmt.Errorf("this host knows no such %s: give a number, if it is one of the storage's alone", what)
	}
	return strconv.ParseUint(f[2], 10, 32)
}

// shardFlag reads I/N.
func shardFlag(cfg *overlay.DrainConfig, v string) error {
	if v == "" {
		return nil
	}
	var i, n int
	if _, err := fmt.Sscanf(v, "%d/%d", &i, &n); err != nil || fmt.Sprintf("%d/%d", i, n) != v || n < 1 || i < 0 || i >= n {
		return usageErrorf("migratefs drain: --shard %q: give I/N, the I-th part of N, I from 0 to N-1", v)
	}
	cfg.Shard, cfg.Shards = i, n
	return nil
}
