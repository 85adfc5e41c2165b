package main

import "slices"

// load is one workload: trees, and steps that run one after another on a mount of
// them.
type load struct {
	name string
	// lower and upper make the layers, in an empty directory; nil: empty.
	lower, upper func(dir string) error
	readOnly     bool   // the steps change nothing: one lower serves every mount
	fstype       string // what it runs on; "": ext4
	big          bool   // few files and many bytes: removed after each run
	uncounted    bool   // no pass for counting
	skip         func(k *kind) bool
	steps        []step
}

// fits reports whether k can be measured with l.
func (l *load) fits(k *kind) bool {
	return (l.readOnly || !k.readOnly) && (k.only == nil || slices.Contains(k.only, l.name)) && (l.skip == nil || !l.skip(k))
}

// step is what is timed.
type step struct {
	name    string
	ops     int  // files, or entries, or calls: what counts are divided by
	remount bool // on a new mount, to which everything is new
	cold    bool // nothing in the page cache
	writes  bool // written out before the next step
	run     func(e *env) error
}

// env is where a step works.
type env struct {
	*place
	kind  *kind
	point string
}

// loads lists the workloads, a twentieth as big if quick.
func loads(cfg *config) []*load {
	size := func(n int) int {
		if cfg.quick {
			n /= 20
		}
		return n
	}
	var all []*load
	all = append(all, smallLoads(size)...)
	all = append(all, treeLoads(size)...)
	all = append(all, dataLoads(size)...)
	return append(all, copyupLoads(size)...)
}
