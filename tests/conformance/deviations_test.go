package conformance

import (
	"slices"
	"strings"
)

// deviate is something that a case sees on some kinds of mounts, other than on
// ext4.
type deviate struct {
	kinds string // their names, or parts of them; "": all
	name  string // of the case
	label string
	seen  string
	why   string
}

// deviations are all that we know of, and mean to keep.
var deviations = []deviate{
	{"lower two", "flags-kept", "idir", "0", upwards},
	{"lower two", "flags-kept", "create in idir after the write", "ok", upwards},
	{"migrate,lower migrate,two", "ctime", "write in a directory", "ok mtime false ctime true",
		"a file comes up by a link into its directory, and no call sets a ctime back (the kernel's overlayfs shows it too)"},
}

const upwards = "the flags i and a of a directory stay below when something in it comes up: with them, nothing could"

func deviation(k *kind, name, label string) *deviate {
	has := func(part string) bool { return strings.Contains(k.name, part) }
	for i := range deviations {
		d := &deviations[i]
		if d.name == name && d.label == label && (d.kinds == "" || slices.ContainsFunc(strings.Fields(d.kinds), has)) {
			return d
		}
	}
	return nil
}
