package overlay

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// intent reports a rename of a directory in several layers that did not come to its end.
// The next mount ends it as a repair does.
func (c *check) intent() {
	path := layers.Path(Reserved).Join(intentName)
	in, fd, err := readIntent(c.upper.Root())
	switch {
	case errors.Is(err, layers.ErrCorrupt):
		c.found(FoundIntent, c.upper, path, "it should say which directory was being renamed, and does not: no mount is made with it; see that no directory is at its old place in one layer and at its new one in another, then remove it", "", nil)
		return
	case err != nil:
		c.unread(c.upper, path, err)
		return
	case in == nil:
		return
	}
	unix.Close(fd)
	what := fmt.Sprintf("the rename of directory %q to %q was interrupted", string(in.from), string(in.to))
	j, err := in.open(c.rootOf)
	if err != nil {
		c.found(FoundIntent, c.upper, path, what+": "+err.Error(), "", nil)
		return
	}
	begun, err := j.begun()
	j.close()
	mends := "it is done, in all layers"
	switch {
	case err != nil:
		c.unread(c.upper, path, err)
		return
	case !begun:
		what += " before it began"
		mends = "the note of it is removed"
	}
	c.found(FoundIntent, c.upper, path, what, mends, func(int, string) error {
		return finishIntent(c.upper.change.Root(), func(name string) int {
			for _, l := range c.stack() {
				if l.change != nil && c.originID(l) == name {
					return l.change.Root()
				}
			}
			return -1
		})
	})
}

// rootOf is the root of the layer with a short id, -1 if it is not at hand.
func (c *check) rootOf(name string) int {
	for _, l := range c.stack() {
		if c.originID(l) == name {
			return l.Root()
		}
	}
	return -1
}
