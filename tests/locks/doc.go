// Package locks compares locks on a mount with locks on a plain directory:
// processes that lock, wait, are told who has what, get signals and die.
//
// A script is written once, with what every step answers, and run on both, so
// that what it expects is what the plain filesystem does. Start reading at scripts.
package locks
