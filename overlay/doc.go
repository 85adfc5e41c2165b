// Package overlay is the merged filesystem: one tree over a stack of layers,
// served to the kernel through go-fuse's RawFileSystem.
//
// # Nodes and identity
//
// A node is one file of the merged tree as the kernel knows it. It keeps its id
// and its st_ino for life: through copy-up, rename and the removal of its lower
// copy. It is found again by the inode it has in a layer (device and number, and
// birth time against reuse) or, where a layer has no inodes, by path and version:
// another version on a source is another node, so that the kernel's page cache
// never holds two versions of one file. st_ino is the file's own number on the
// upper's device and a hash elsewhere; a table keeps two nodes from sharing one.
//
// A node holds no path. Where it lies follows from its names (its parents and
// what it is called there), which renames change; a directory's descriptor in a
// local layer is opened by path, compared with the inode that was looked up, and
// kept in a small cache. Everything below a directory goes by (descriptor, name).
//
// # What may be held while what is done
//
//	flights (one per node: who brings it up)   any I/O; waiting for it is interruptible
//	node.mu (file, then directories above it;  calls on the upper and on local lowers that
//	         two files in the order of ids)     do not move data; never a source
//	FS.tree (all names)                        nothing: memory only
//	table.mu, dirCache.mu, handleTable.mu      nothing: memory only
//
// in this order. No lock is held while a source is asked.
//
// # Invariants
//
//   - A node that has an upper never goes back to a lower: what a look at the
//     layers found may be older than a copy-up.
//   - A handle's descriptor is only ever set, by the copy-up: an old read-only
//     descriptor sees what is written through a new one.
//   - What the kernel may keep: contents by inode, dropped when size or mtime
//     change; names and attributes for entry_timeout and attr_timeout.
//
// Start reading at FS and lookup.
package overlay
