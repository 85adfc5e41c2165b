// Package oracle compares migratefs with filesystems that we did not write: one
// random sequence of operations is made on ours and on the kernel's overlayfs, or
// on ext4, and every result, errno and attribute must be the same.
package oracle
