// Package criu reads what a CRIU checkpoint says about files, and runs CRIU.
//
// Load reads the images of a directory that `criu dump -D` wrote and returns a
// Checkpoint: the tasks, every file they refer to with what the images know of
// it (path, mode, usually size and build-id), how each is referred to, and
// which of them lie on storage that stays behind when the process moves.
// Image formats are those of CRIU's images/*.proto, in the framing of its
// criu/protobuf.c; both files.img (3.0 and later) and reg-files.img with its
// siblings (before) are read.
//
// # Trust
//
// Images are read as if an enemy had written them: sizes are checked against
// the file before anything is allocated, names are checked before anybody uses
// them, memory stays within a small multiple of the images' size. Loading never
// opens a path that an image names. Restoring is another matter: it executes
// what the images hold, by definition.
//
// # Running CRIU
//
// Restore runs `criu swrk` inside the namespaces that cmd/migratefs prepared.
// CRIU and its libraries always come from this host, never from the view that
// the restored process gets: they would run as root.
//
// Start reading at Load and at Checkpoint.
package criu
