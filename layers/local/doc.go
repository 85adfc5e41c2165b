// Package local is a layer that is a directory on this host.
//
// The directory is held by a descriptor that was opened before the overlay was
// mounted, so that no request can come back through the overlay's own mount.
// With Config.Private the descriptor belongs to a clone of the mount the
// directory lies on (open_tree(2)), read-only and without access times: a write
// that went astray becomes EROFS instead of a changed lower.
//
// Every path is resolved by openat2(2) below that descriptor, to a descriptor
// of the parent; the last component is then used in *at calls. No string path
// reaches the kernel from anywhere else.
//
// Start reading at Open and Layer.
package local
