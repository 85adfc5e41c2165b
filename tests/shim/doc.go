// Package shim is a filesystem for tests that shows a directory as a network or
// cluster filesystem would, with whatever that lacks or gets wrong.
//
//	nfs := shim.Mount(t, dir, point, shim.NFS())
//	nfs.Set(func(l *shim.Lies) { l.Repeat = func(op, name string) bool { return op == "link" } })
//
// Two mounts of one directory are two hosts: each has names and attributes in the
// kernel for as long as Lies.Stale says, whatever the other does. It runs within
// the test, which must not map its files (a page fault stops a thread of Go's that
// may be needed to serve it).
//
// Rights are the kernel's to check, on the attributes of the directory; what is
// made belongs to who makes it. Locks are of one mount alone, as on NFS with
// local_lock=all.
//
// Start reading at Lies and Mount.
package shim
