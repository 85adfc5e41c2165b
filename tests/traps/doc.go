// Package traps holds the tests of what others, and we, have fallen into: a
// write that lands in the lower through a descriptor opened before the copy-up,
// a request that acts with somebody else's rights, a FIFO that is opened where a
// file was looked up, a disk that fills up in the middle of a copy-up.
//
// All of them go through the real binary and the kernel.
package traps
