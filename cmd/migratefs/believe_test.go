package main

import (
	"testing"
	"time"

	"github.com/migratefs/migratefs/layers/remember"
)

// TestBelieved: what is remembered of a source holds no longer than the kernel is told.
func TestBelieved(t *testing.T) {
	for _, c := range []struct {
		options      string
		keep, absent time.Duration
		kernel       time.Duration // of names; 0: the overlay's own
	}{
		{"", 3 * time.Second, 3 * time.Second, 3 * time.Second},
		{"entry_timeout=10", 3 * time.Second, 10 * time.Second, 10 * time.Second},
		{"entry_timeout=10,attr_timeout=20", 10 * time.Second, 10 * time.Second, 10 * time.Second},
		{"entry_timeout=10,attr_timeout=5,negative_timeout=0", 5 * time.Second, 0, 10 * time.Second},
		{"attr_timeout=0", 0, 3 * time.Second, 3 * time.Second},
		{"immutable", remember.Forever, remember.Forever, 0},
		{"immutable,attr_timeout=1", time.Second, remember.Forever, 0},
		{"view=root", time.Second, time.Second, 0},
	} {
		o, err := parseOptions([]string{"lowerdir=host:/dir," + c.options})
		if err != nil {
			t.Errorf("%s: %v", c.options, err)
			continue
		}
		cfg := o.remembering()
		if cfg.Keep != c.keep || cfg.Absent != c.absent {
			t.Errorf("%s: kept for %v, absent for %v", c.options, cfg.Keep, cfg.Absent)
		}
		entry, _, _ := o.timeouts()
		if c.kernel == 0 && entry != nil || c.kernel != 0 && (entry == nil || *entry != c.kernel) {
			t.Errorf("%s: the kernel believes names for %v", c.options, entry)
		}
	}
	if o, err := parseOptions([]string{"lowerdir=/dir,prefetch=off"}); err != nil || !o.remembering().NoAhead {
		t.Error("prefetch=off is not heeded", err)
	}
	if entry, attr, _ := (&options{lowers: []lowerSpec{{text: "/dir"}}}).timeouts(); entry != nil || attr != nil {
		t.Error("local layers have a source's timeouts")
	}
}
