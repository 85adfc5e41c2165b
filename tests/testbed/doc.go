// Package testbed makes the real parts that tests drive: a private sshd, a
// link that is slow or breaks, two hosts on one machine, the migratefs binary
// and mounts of it, and the comparison of two trees.
//
// Everything it starts ends with the test that started it, and with the test
// process if that dies first. Everything it makes lies in the temporary
// directory of the test. What it cannot make fails the test; a machine that
// cannot have it (no root, no /dev/fuse) skips the test by name, which `make
// test` counts as a failure.
//
// Start reading at StartSSHD, NewHosts, Mount and Snapshot.
package testbed
