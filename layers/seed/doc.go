// Package seed is a layer that knows a set of names before it asks anybody.
//
// A CRIU checkpoint tells which files a process holds: their names, modes,
// usually sizes. A Seed is that list, and a Layer serves it on top of the layer
// where the files really are (Inner, mostly layers/remote). New asks Inner about
// all of them and their directories in one burst, compares, and refuses with a
// MismatchError if a file is no longer what the process had open: restored on
// other content it would corrupt its own data (Config.Verify says otherwise). From then on these names cost no
// round trip, and their size and mtime are the version that every later fetch
// is held to; whatever changes on the source afterwards is ErrStale, never new
// content under an old process.
//
// Everything else is Inner's to answer with Tree names, and does not exist with
// Flat names (those of LazyFS: /home/u/f is home.u.f in the root directory).
//
// Without Inner the layer says what the seed says and no more: no owner, no
// times, and ErrOffline for content. With an Inner that was out of reach when
// the layer was made the same holds until it is back; each name is compared the
// first time it is used after that. A directory is never listed from the seed
// alone while there is an Inner: the rest of it would seem to be gone.
//
// Images is the other half of a checkpoint that lies elsewhere: its directory, small
// files read at once, as a layer.
//
// Start reading at New and at Layer.
package seed
