package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// bed is where mounts are made and measured.
type bed struct {
	cfg   *config
	kinds []*kind
	dir   string
	made  int // trees, so far
}

func newBed(cfg *config) (b *bed, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("mounting takes root")
	}
	b = &bed{cfg: cfg}
	if b.kinds, err = findKinds(cfg); err != nil {
		return nil, err
	}
	b.dir, err = os.MkdirTemp(cfg.dir, "bench.")
	return b, err
}

func (b *bed) close() error { return os.RemoveAll(b.dir) }

// disk makes the filesystem for l: each load has a new one, and trees of small
// files stay until it goes, because ext4 is slow to make files where others were
// deleted minutes ago.
func (b *bed) disk(l *load) (*disk, error) {
	if l.fstype != "" {
		return newDisk(b.dir, l.fstype, 12)
	}
	return newDisk(b.dir, "ext4", 24)
}

// figure is one step of one run on one mount.
type figure struct {
	wall, cpu time.Duration
}

// results of a load: by step, then by kind, one figure for each run.
type results struct {
	figures []map[*kind][]figure
	counts  []map[*kind]count
}

// measure runs l on every mount, run by run, each time beginning with another.
func (b *bed) measure(l *load) (_ *results, err error) {
	d, err := b.disk(l)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := d.close(); err == nil {
			err = cerr
		}
	}()
	res := &results{}
	for range l.steps {
		res.figures = append(res.figures, map[*kind][]figure{})
		res.counts = append(res.counts, map[*kind]count{})
	}
	shared := filepath.Join(d.dir, "shared")
	if l.readOnly {
		if err := make1(shared, l.lower); err != nil {
			return nil, err
		}
	}
	for run := range b.cfg.runs {
		for i := range b.kinds {
			k := b.kinds[(i+run)%len(b.kinds)]
			if !l.fits(k) {
				continue
			}
			err := b.once(l, k, d, func(i int, m *mounted, run func() error) error {
				cpu, began := m.cpu(), time.Now()
				err := run()
				f := figure{wall: time.Since(began), cpu: m.cpu() - cpu}
				res.figures[i][k] = append(res.figures[i][k], f)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.name, err)
			}
		}
	}
	if !b.cfg.counts || l.uncounted {
		return res, nil
	}
	for _, k := range b.kinds {
		if k.args == nil || !l.fits(k) {
			continue
		}
		err := b.once(l, k, d, func(i int, m *mounted, run func() error) (err error) {
			res.counts[i][k], err = countDuring(m.cmd.Process.Pid, run)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("counting %s: %w", k.name, err)
		}
	}
	return res, nil
}

// once makes the layers and the mount, and hands each step of l to do.
func (b *bed) once(l *load, k *kind, d *disk, do func(step int, m *mounted, run func() error) error) error {
	b.made++
	top := filepath.Join(d.dir, strconv.Itoa(b.made))
	p := &place{upper: top + "/upper", work: top + "/work", lower: top + "/lower", point: filepath.Join(b.dir, "mnt."+k.name)}
	for _, dir := range []string{p.upper, p.work, p.lower, p.point} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if l.big {
		defer os.RemoveAll(top)
	}
	upper := p.upper
	if k.flat {
		upper = p.lower
	}
	switch {
	case l.readOnly:
		p.lower = filepath.Join(d.dir, "shared")
	case l.lower != nil:
		if err := l.lower(p.lower); err != nil {
			return err
		}
	}
	if l.upper != nil {
		if err := l.upper(upper); err != nil {
			return err
		}
	}
	d.sync()
	m, err := k.start(p)
	if err != nil {
		return err
	}
	defer func() { _ = m.stop() }()
	for i := range l.steps {
		s := &l.steps[i]
		if s.remount {
			if err := m.stop(); err != nil {
				return err
			}
			if m, err = k.start(p); err != nil {
				return err
			}
		}
		if s.cold {
			if err := dropCaches("3"); err != nil {
				return err
			}
		}
		e := &env{point: p.point, kind: k, place: p}
		if err := do(i, m, func() error { return s.run(e) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if s.writes {
			d.sync()
		}
	}
	return nil
}

// make1 makes a directory and what f makes in it.
func make1(dir string, f func(dir string) error) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return f(dir)
}
