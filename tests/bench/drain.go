package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// mover brings a whole tree from one filesystem to another, and has it durable.
type mover struct {
	name string
	move func(cfg *config, from, to string) error
}

// movers are drain and what people use else. Those copy, and leave the source; drain
// removes each file when its copy is durable.
var movers = []mover{
	{"cp -a, sync", func(_ *config, from, to string) error {
		if err := command("cp", "-a", from+"/.", to); err != nil {
			return err
		}
		return command("sync", "-f", to)
	}},
	{"rsync -a, sync", func(_ *config, from, to string) error {
		if err := command("rsync", "-a", from+"/", to); err != nil {
			return err
		}
		return command("sync", "-f", to)
	}},
	{"rsync -a --remove-source-files --fsync", func(_ *config, from, to string) error {
		return command("rsync", "-a", "--remove-source-files", "--fsync", from+"/", to)
	}},
	{"drain", drainWith()},
	{"drain --jobs 1", drainWith("--jobs", "1")},
	{"drain --checksum", drainWith("--checksum")},
}

func drainWith(flags ...string) func(*config, string, string) error {
	return func(cfg *config, from, to string) error {
		args := append([]string{cfg.migratefs, "drain"}, flags...)
		return command(append(args, "-o", "lowerdir="+from+",upperdir="+to)...)
	}
}

// trees to move.
func moveTrees(cfg *config) []struct {
	name string
	make func(dir string) error
} {
	files, bytes := 20_000, 1<<30
	if cfg.quick {
		files, bytes = files/20, bytes/20
	}
	return []struct {
		name string
		make func(dir string) error
	}{
		{fmt.Sprintf("%d small files", files), func(dir string) error { return writeTree(dir, files, files/100) }},
		{fmt.Sprintf("4 files of %d MiB", bytes>>22), func(dir string) error {
			for i := range 4 {
				if err := writeBig(filepath.Join(dir, fmt.Sprint(i)), bytes/4); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

// moved is the times of one tree, by mover.
type moved struct {
	tree  string
	times [][]float64 // seconds
}

// drain moves each tree by each mover, run by run, between two ext4 filesystems.
func (b *bed) drain() (all []moved, err error) {
	for _, tree := range moveTrees(b.cfg) {
		m := moved{tree: tree.name, times: make([][]float64, len(movers))}
		for range b.cfg.runs {
			for i, mv := range movers {
				took, err := b.moveOnce(tree.make, mv)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", mv.name, err)
				}
				m.times[i] = append(m.times[i], took.Seconds())
			}
		}
		all = append(all, m)
	}
	return all, nil
}

func (b *bed) moveOnce(fill func(string) error, mv mover) (took time.Duration, err error) {
	var ends []*disk
	for _, name := range []string{"old", "new"} {
		at := filepath.Join(b.dir, name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return 0, err
		}
		d, err := newDisk(at, "ext4", 6)
		if err != nil {
			return 0, err
		}
		defer func() {
			if cerr := d.close(); err == nil {
				err = cerr
			}
		}()
		if err := os.Mkdir(d.dir+"/data", 0o755); err != nil {
			return 0, err
		}
		ends = append(ends, d)
	}
	from, to := ends[0].dir+"/data", ends[1].dir+"/data"
	if err := fill(from); err != nil {
		return 0, err
	}
	for _, d := range ends {
		d.sync()
	}
	began := time.Now()
	err = mv.move(b.cfg, from, to)
	return time.Since(began), err
}

func (r *report) drainTable(w io.Writer) {
	fmt.Fprintf(w, "\n| |")
	for _, m := range r.drains {
		fmt.Fprintf(w, " %s, s | of %s |", m.tree, movers[0].name)
	}
	fmt.Fprintf(w, "\n|---|")
	for range r.drains {
		fmt.Fprintf(w, "--:|--:|")
	}
	fmt.Fprintln(w)
	for i, mv := range movers {
		fmt.Fprintf(w, "| %s |", mv.name)
		for _, m := range r.drains {
			var ratios []float64
			for run := range m.times[i] {
				ratios = append(ratios, m.times[i][run]/m.times[0][run])
			}
			fmt.Fprintf(w, " %.1f | %.2f |", median(m.times[i]), median(ratios))
		}
		fmt.Fprintln(w)
	}
}
