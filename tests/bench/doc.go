// Bench measures migratefs beside its peers: one workload over many mounts in
// one run, each run of one mount paired with one of every other, so that what
// else the machine does falls on all of them. It prints medians and ratios, and
// writes docs/performance.md and, of what goes over SSH, docs/performance-remote.md and,
// of processes that move, docs/performance-restore.md; nothing asserts on a figure.
//
//	make bench                                  all of it, into docs/
//	make bench ONLY=untar,git MOUNTS=fuse-overlayfs,ours-overlay RUNS=3
//	make bench QUICK=1                          everything small: does it work?
//	make bench BASE=old/migratefs ONLY=small    an older build beside this one
//	make bench ONLY=restore SIZES=10,1024       processes with 10 MiB and 1 GiB of open files
//
// Every mount gets its layers as directories of one ext4 image, warm, and is
// made anew for each run. Beside the time that passes, the processor time of the
// daemon is taken, which suffers less from what else runs; in a pass of its own,
// under strace, the FUSE requests and the daemon's system calls are counted.
//
// Start reading at main, loads and kinds.
package main
