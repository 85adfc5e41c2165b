// Package sys holds the system calls the project makes on layers.
//
// Three things live here and nowhere else. First, every call that changes what
// is on disk, each announced to a hook before it happens, so that tests can
// make the n-th change fail with a chosen errno or be the last thing the
// process does. Second, the one way from a path to a descriptor: openat2 below
// a root descriptor with no symlink, magic link or ".." followed. Third, what
// golang.org/x/sys/unix has no safe wrapper for: per-thread credentials,
// private mount clones, xattrs of things that cannot be opened.
//
// Every function returns a bare unix.Errno and retries EINTR where the call may
// be repeated. Names are single components unless the parameter is called path.
//
// Start reading at OpenBeneath and Change.
package sys
