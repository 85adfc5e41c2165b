package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// config is what the command line says.
type config struct {
	runs      int
	only      []string
	mounts    []string
	quick     bool
	counts    bool
	detail    bool
	docs      string
	migratefs string
	base      string
	original  string
	dir       string
	files     int
	sizes     []int64 // of what a process that is moved has open, MiB
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if len(os.Args) > 2 && os.Args[1] == workerArg {
		worker(os.Args[2:])
		return
	}
	if len(os.Args) > 3 && os.Args[1] == plainArg {
		if err := servePlain(os.Args[2], os.Args[3]); err != nil {
			log.Fatal(err)
		}
		return
	}
	cfg := parse()
	if err := run(cfg); err != nil {
		log.Fatal(err)
	}
}

func parse() *config {
	c := &config{}
	only := flag.String("only", "", "workloads to run, by `name,...` (all)")
	mounts := flag.String("mounts", "", "mounts to measure, by `name,...` (all that are here)")
	flag.IntVar(&c.runs, "runs", 3, "how often each is measured")
	flag.BoolVar(&c.quick, "quick", false, "a twentieth of the work")
	flag.BoolVar(&c.counts, "counts", true, "count FUSE requests and system calls too")
	flag.BoolVar(&c.detail, "detail", false, "name the requests and calls that were counted")
	flag.IntVar(&c.files, "files", 1000, "how many small files are searched over SSH; a mount that asks for each needs an hour for 10000, three times")
	sizes := flag.String("sizes", "", "`MiB,...` of open files that a process moves with (10,1024,8192)")
	flag.StringVar(&c.docs, "docs", "", "`directory` for performance.md and its chart")
	flag.StringVar(&c.migratefs, "migratefs", "build/migratefs", "the `binary` to measure")
	flag.StringVar(&c.base, "base", "", "another build of it, to compare with (BASE-overlay, BASE-migrate)")
	flag.StringVar(&c.original, "original", "", "`binary` of the C migratefs, if it is here")
	flag.StringVar(&c.dir, "dir", os.TempDir(), "where the disk images go")
	flag.Parse()
	c.only, c.mounts = list(*only), list(*mounts)
	if c.base != "" {
		c.base, _ = filepath.Abs(c.base)
	}
	c.migratefs, _ = filepath.Abs(c.migratefs)
	var err error
	if c.sizes, err = sizesOf(*sizes); err != nil {
		log.Fatal(err)
	}
	if c.sizes == nil {
		c.sizes = heldSizes(c.quick)
	}
	return c
}

// part is how make bench was told to do less than all of it.
func (c *config) part() (said string) {
	if c.only != nil {
		said += " ONLY=" + strings.Join(c.only, ",")
	}
	if c.mounts != nil {
		said += " MOUNTS=" + strings.Join(c.mounts, ",")
	}
	if !c.counts {
		said += " COUNTS=0"
	}
	return said
}

func list(s string) []string {
	if s = strings.Trim(s, ", "); s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// wants reports whether name is on the list; an empty one has all.
func wants(list []string, name string) bool { return len(list) == 0 || slices.Contains(list, name) }

func run(cfg *config) (err error) {
	bed, err := newBed(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := bed.close(); err == nil {
			err = cerr
		}
	}()
	began := time.Now()
	rep := &report{cfg: cfg, kinds: bed.kinds, began: began}
	for _, l := range loads(cfg) {
		if !wants(cfg.only, l.name) {
			continue
		}
		log.Printf("%v: %s", time.Since(began).Round(time.Second), l.name)
		res, err := bed.measure(l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		rep.add(l, res)
		rep.table(os.Stdout, l)
	}
	if wants(cfg.only, "memory") {
		log.Printf("%v: memory", time.Since(began).Round(time.Second))
		if rep.memory, err = bed.memory(); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		rep.memoryTable(os.Stdout)
	}
	if wants(cfg.only, "drain") {
		log.Printf("%v: drain", time.Since(began).Round(time.Second))
		if rep.drains, err = bed.drain(); err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		rep.drainTable(os.Stdout)
	}
	if wants(cfg.only, "remote") {
		log.Printf("%v: remote", time.Since(began).Round(time.Second))
		if rep.remotes, err = bed.remote(); err != nil {
			return fmt.Errorf("remote: %w", err)
		}
		rep.remoteTable(os.Stdout)
	}
	if wants(cfg.only, "restore") {
		log.Printf("%v: restore", time.Since(began).Round(time.Second))
		if rep.restores, err = bed.restores(); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		rep.restoreTable(os.Stdout)
	}
	rep.took = time.Since(began)
	log.Printf("took %v", rep.took.Round(time.Second))
	if cfg.docs == "" || cfg.quick {
		return nil
	}
	if rep.remotes != nil {
		if err := writePage(cfg.docs, "performance-remote", rep.remotePage, rep.remoteChart()); err != nil {
			return err
		}
	}
	if rep.restores != nil {
		if err := writePage(cfg.docs, "performance-restore", rep.restorePage, rep.restoreChart()); err != nil {
			return err
		}
	}
	if len(rep.rows) == 0 && (rep.remotes != nil || rep.restores != nil) {
		return nil
	}
	return rep.write(cfg.docs)
}
