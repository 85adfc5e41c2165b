// Package powerloss takes the power away, again and again, from a host that
// brings files up, and looks at what it finds when the power is back.
//
// The layers lie on loop devices whose files are in a small FUSE filesystem of
// this test, which keeps every write and every flush of both, in order
// (disk_test.go). A moment of power loss is a prefix of that log: what was written
// before a disk's last flush is on it, of what came after it any part is. Such disks
// are mounted (the filesystem's own journal recovers), then the layers, by the real
// binary, and each name must show what it may show (model_test.go, check_test.go).
//
// MIGRATEFS_POWERLOSS_POINTS says how many moments are tried for each filesystem,
// MIGRATEFS_POWERLOSS_SEED which.
package powerloss
