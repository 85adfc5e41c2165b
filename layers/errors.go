package layers

import (
	"errors"
	"fmt"
)

// Errors on which somebody decides. Everything else that a layer returns is, or
// wraps, the unix.Errno of the call that failed (ENOENT, EACCES, ENOSPC, ...).
// Package overlay turns all of them into an errno in one table.
var (
	// ErrOffline: the layer's storage cannot be reached now. Trying again later
	// may work.
	ErrOffline = errors.New("source is not reachable")

	// ErrStale: the file is no longer the version that was looked up.
	ErrStale = errors.New("changed on the source")

	// ErrReplaced: the layer is reachable, but is not the tree it was at mount.
	ErrReplaced = errors.New("source is not the one that was mounted")

	// ErrCorrupt: what came from disk or wire contradicts itself.
	ErrCorrupt = errors.New("corrupt")

	// ErrDenied: the source refused the login. It is not tried again by itself.
	ErrDenied = errors.New("login refused")

	// ErrNotRegular: Open of something that is not a regular file.
	ErrNotRegular = errors.New("not a regular file")
)

// PathError says which operation failed on which path of which layer. The path
// is quoted: it may hold anything.
type PathError struct {
	Op    string // "stat", "read", ...
	Layer string // the layer as the user named it
	Path  Path
	Err   error
}

func (e *PathError) Error() string {
	return fmt.Sprintf("%s %s %q: %v", e.Op, e.Layer, string(e.Path), e.Err)
}

func (e *PathError) Unwrap() error { return e.Err }
