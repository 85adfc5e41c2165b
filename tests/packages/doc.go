// Package packages tests what administrators meet: deb and RPM, installed into a bare
// root that is thrown away, mounts made by lines of fstab there, the unit under a systemd
// that can reach nothing of this host, what it takes away from the daemon, old kernels,
// the container image, and the documents.
//
// With MIGRATEFS_TEST_LONG set it also makes a whole release, twice, in two places.
package packages
