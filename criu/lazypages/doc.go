// Package lazypages gives restored processes their memory when they touch it, and the rest
// of it in the background, out of the images of their checkpoint.
//
// CRIU restores with --lazy-pages: of what may come later (criu.Lazy) it makes the mappings
// only, registers them with a userfaultfd for each process, and hands these to whoever
// listens in its work directory. A thread that touches a page that is not here waits until
// it is put there. This is what `criu lazy-pages` does; what is different here is what
// happens when something goes wrong:
//
//   - When the last descriptor of a userfaultfd is closed, the kernel gives its process zeros
//     for what is missing, and nothing says so. A process that dies has its descriptors closed
//     before anybody can hear of it, also if it is the init of a pid namespace. So the
//     descriptors lie in a table that two processes have (sys.HoldFiles): the second does
//     nothing but wait for the end of the first, then kills the processes whose memory it is,
//     and lets go when they have ended. Children are covered from their first instant: their
//     descriptor comes into that table by the very read that lets fork(2) return.
//   - A page that cannot be read is waited for, whatever the error: there is nothing else that
//     could be given for it. Server.State says so, and those who wait can be killed. So it is
//     with one that was read of an image that is not as it was when the restore began.
//
// # What the process does meanwhile
//
// Changes of its mappings come as events on the descriptor, and who makes one waits until it was
// read. From the beginning of the change until then the kernel refuses to have pages put there
// (EAGAIN). So what is known to be missing and what is put there agree if no event is read
// between a look at the one and the other: space.mu is held over both, and over each read of
// an event together with what it means. A page that was asked for and is not known to be missing
// is zeros: it never was in the images, or the process has given it back since.
//
// Of two things there is no event: which memory a fork empties in the child (MADV_WIPEONFORK; the
// images say that of what came out of them, and a process that changes it after that is
// not followed), and that pages are empty which were guards (MADV_GUARD_REMOVE). Nor is there one
// when a process ends, or executes a program: spaces are looked through for that when there are more.
//
// # Locks
//
//	space.mu     what is missing in one
//	  Server.mu  which spaces there are
//
// Neither is held while images are read.
//
// Start reading at Server.Serve.
package lazypages
