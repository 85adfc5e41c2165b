// Package layers is the contract between the overlay and what it stacks.
//
// A layer is a directory tree that can be read: a local directory
// (layers/local), a directory on another host (layers/remote), or what a CRIU
// checkpoint says about one (layers/seed). Optional abilities are one-method
// interfaces that a layer or a file may implement besides; retry, cache and
// fault injection are layers around a layer. The package knows nothing of FUSE
// and holds no policy: what a whiteout means and which layer wins is decided in
// package overlay.
//
// # What every layer promises
//
//   - It is safe for concurrent use, and a cancelled context ends a wait at once.
//   - A name is reported absent (ENOENT, ENOTDIR) only when the layer has seen
//     that it is absent. A layer that cannot look returns ErrOffline, ErrStale
//     or an I/O error: storage that went away is never an empty directory.
//   - ReadAt returns bytes of the one version the file had when it was opened,
//     or an error; never zeros for bytes that could not be read, and io.EOF only
//     at that version's end of file.
//   - A path never leaves the layer: no symlink is followed, ".." does not exist.
//
// One suite, layers/layertest, runs against every layer.
//
// Start reading at Layer.
package layers
