// Package remote tests a mount of a source that fails: its link is cut, frozen,
// slow or corrupt, its processes die or hang, its disk goes away, its keys
// change. A real ssh talks to a real sshd, through a proxy that breaks what it is
// told to.
//
// What every test asserts: whatever is read is right, byte for byte, or an
// error, and comes to an end; a name is never missing and a directory never
// empty because the source could not be asked; what lies on this side is served
// throughout; and when the source is back, so is everything.
//
// No time is measured. Limits are such that what reaches them hangs.
package remote
