// Package whiteout is the on-disk language of the kernel's overlayfs: what
// stands in an upper (or in a lower that once was one) to say that a name is
// gone, that a directory hides what lies below it, that it lies elsewhere below,
// or that a file's data does.
//
// Source: Documentation/filesystems/overlayfs.rst and fs/overlayfs/ of the
// Linux kernel (namei.c, util.c, xattrs.c).
//
// Start reading at Format.
package whiteout

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Format is the prefix under which overlay xattrs stand: trusted.overlay.* as
// root, user.overlay.* in mounts made with userxattr.
type Format string

const (
	Trusted Format = "trusted.overlay."
	User    Format = "user.overlay."
)

// Xattrs after the prefix.
const (
	Opaque   = "opaque"   // "y": a directory that hides what lies below; "x": one with whiteouts that are files
	Redirect = "redirect" // a directory's, or metacopy file's, path below
	Metacopy = "metacopy" // a regular file whose data lies below
	Origin   = "origin"   // file handle of the lower file
	Whiteout = "whiteout" // of an empty file in a directory with opaque "x": a whiteout
	Impure   = "impure"   // "y": a directory that may hold files with an origin
	Upper    = "upper"    // of the index directory: file handle of the upper
	Nlink    = "nlink"    // "L+n" or "U+n": link count relative to lower or upper
	Object   = "migratefs.object"
	Conflict = "migratefs.conflict" // of a pending file's stub: its source has another version now
	escape   = "overlay."
)

// Whiteouts as OCI image layers have them
// (https://github.com/opencontainers/image-spec/blob/main/layer.md).
const (
	OCIPrefix = ".wh."         // before a name: it is gone
	OCIOpaque = ".wh..wh..opq" // in a directory: it hides what lies below
)

// Name returns the full name of an overlay xattr.
func (f Format) Name(x string) string { return string(f) + x }

// Is reports whether attributes describe a whiteout: a character device 0:0.
func Is(a *layers.Attr) bool { return a.Type() == unix.S_IFCHR && a.Rdev == 0 }

// ToDisk returns the name under which an xattr that a user of the mount names
// stands on disk, and whether it may: the overlay's own are escaped, so that an
// overlay inside ours can have its own (trusted.overlay.opaque becomes
// trusted.overlay.overlay.opaque).
func (f Format) ToDisk(name string) string {
	if rest, ok := strings.CutPrefix(name, string(f)); ok {
		return string(f) + escape + rest
	}
	return name
}

// FromDisk is the inverse of ToDisk; ok is false for xattrs that belong to the
// overlay and are hidden from its users.
func (f Format) FromDisk(name string) (shown string, ok bool) {
	rest, ours := strings.CutPrefix(name, string(f))
	if !ours {
		return name, true
	}
	if inner, escaped := strings.CutPrefix(rest, escape); escaped {
		return string(f) + inner, true
	}
	return "", false
}
