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
// A Worker is a `criu swrk`, started while this host's root is still the root.
// Its answer to Version means that it is loaded; then the caller makes the view
// the root, of CRIU too, and asks it to Restore. Until that ends CRIU looks at
// the view as its root, so whatever it would load or execute by name (plugins,
// iptables) has to be kept from it by StartWorker's environment: there it would
// be the source's, and run as root.
//
// Options that the RPC has no field for go through a configuration file
// (ConfigLines); what went wrong is in CRIU's log (LogErrors, Summary).
//
// Start reading at Load, Checkpoint and Worker.
package criu
