package main

import (
	"time"

	"github.com/migratefs/migratefs/layers/remember"
	"github.com/migratefs/migratefs/overlay"
)

// sourceTimeout is how long what was seen of a source is believed: names, that a name is
// not there, and attributes; by the kernel and by the daemon together. It is what NFS
// takes for a file that changes all the time (acregmin): long enough that a walker comes
// to what was listed ahead of it, and that a program that looks twice asks once.
const sourceTimeout = 3 * time.Second

// timeouts are those of the mount; nil: the overlay's own.
func (o *options) timeouts() (entry, attr, negative *time.Duration) {
	entry, attr, negative = o.entry, o.attr, o.negative
	if !o.hasSource() || o.immutable || o.viewAll { // whose / changes without us
		return entry, attr, negative
	}
	d := sourceTimeout
	if entry == nil {
		entry = &d
	}
	if attr == nil {
		attr = &d
	}
	return entry, attr, negative
}

func (o *options) hasSource() bool {
	for _, l := range o.lowers {
		if l.remote {
			return true
		}
	}
	return false
}

// remembering says how a source is remembered: no longer than the mount's timeouts allow
// for names and attributes, as it answers with both.
func (o *options) remembering() remember.Config {
	entry := sourceTimeout
	switch {
	case o.immutable:
		entry = remember.Forever
	case o.viewAll:
		entry = time.Second
	}
	attr := entry
	if o.entry != nil {
		entry = *o.entry
	}
	if o.attr != nil {
		attr = *o.attr
	}
	absent := entry
	if o.negative != nil {
		absent = *o.negative
	}
	return remember.Config{Keep: min(entry, attr), Absent: absent, NoAhead: o.noPrefetch, Order: overlay.ListedAt}
}
