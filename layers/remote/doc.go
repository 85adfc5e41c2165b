// Package remote is a directory on another host as a layer: an SFTP version 3
// client over the system's ssh. Nothing but sshd with its sftp subsystem is
// needed on the source, and nothing there is ever changed.
//
// # What it promises
//
// Everything package layers does, and:
//
//   - Whatever fails because the connection is gone is ErrOffline (ErrDenied if
//     the login was refused), never ENOENT and never an end of file.
//   - A name is absent only if, in the same burst, its directory was seen to be
//     one, to be reached through no symlink, and the root to be the one that was
//     mounted (fsid); a root that is another one is ErrReplaced.
//   - Bytes are handed out only after an FSTAT of the handle behind the reads
//     has shown the version that was opened. That is size, mtime, mode and owner
//     of what a server that answers in order sees; what SFTP cannot show (a store
//     through mmap, touch -r, a second change within the second of the first)
//     it cannot notice. File.Settled tells when the last of these is possible.
//   - SFTP resolves paths on the server. That no symlink is in them is checked
//     with REALPATH behind each use: whoever can change directories on the
//     source in just that instant, and back, can make another file of the
//     same type, mode, owner, size and mtime appear. Submounts are part of the
//     tree; that one of them is gone is not noticed, as its root has no record.
//
// # Our own server
//
// Where the source runs migratefs sftp-server (layers/remote/server), attributes are
// whole: inodes, nanoseconds, the time of the last change. That counts in versions, so
// that touch -r and a second change within a second are noticed; so is every rename,
// chmod and new link, which cannot be told from them, and is ErrStale for who has the
// file open. A root that is another directory is ErrReplaced. There are extended
// attributes, and holes are read around. A server without any of this, or with some of
// it, is used as it is; but a layer keeps to the kind that it began with.
//
// # Connections
//
// The main connection is for whoever waits, and has all handles that stay open.
// Besides it there are lanes, made when they are needed: a swift one for small files
// and listings, and bulk ones for what is done under layers.Background, which so does
// not stand before demand, but for 2 MiB while there is no bulk lane. A read that
// somebody waits for is not striped over lanes: of the 1 MiB that the kernel asks for at
// most, all is on its way in one round trip anyway (20 ms away: 24 ms, striped 26;
// of 8 MiB, which nobody asks for at once, 109 and 68). Nothing depends
// on a lane: what fails on one is asked on the main connection, which has the last
// word, and one that is held up does not hold up the others. On lanes of a server that
// hands out handles as OpenSSH's does, a file or directory is opened and read in the
// same exchange (see serial.go).
//
// # Round trips
//
//	                          handles predicted   not
//	Stat, Readlink, Statfs    1                   1   (2 for a path whose parent is no directory)
//	StatMany                  1                   1   per 8 MiB of answers
//	ReadDir                   1                   2   more than some 1,200 names: plus 1 per 32 READDIRs of 100
//	ReadDirs                  1                   2   per 128 directories of 198 names, which overlap;
//	                                                  plus 1 if some have up to 1,200
//	Open of up to 128 KiB     1                   1   (one more without want)
//	  and the first ReadAt    0                   1
//	  and further ones        0                   1   (1 when the memory was needed for others)
//	Open of larger files      1                   1   (one more without want)
//	  and each ReadAt         1                   1   the first one looks at the handle as well
//	ReadMany                  1                   2   per 256 files or 4 MiB, which overlap
//
// Until the lane is there it is as if handles could not be predicted; with Connections
// below 3 there is none for demand.
//
// # What a disconnect leaves
//
// Every request can be made again, so each is, on the next connection, while its
// context and (unless Hard) the timeout last.
//
//	lost after          on this side                  on the source
//	OPEN sent           it is opened anew             sshd ends the server, which closes all
//	HANDLE received     the same, by path: another    the same
//	                    version or no file is ErrStale
//	some DATA received  nothing of it is handed out;  the same
//	                    the whole range is read anew
//	FSTAT received      the read is complete          the same
//	READDIR             the listing begins anew       the same
//	OPEN of a FIFO      given up after half the       sftp-server hangs in open(2) until
//	(swapped in)        timeout; the path is looked   somebody writes to the FIFO: that
//	                    at before the next OPEN       cannot be helped from here
//	CLOSE               nothing                       the same
//	login refused       parked until Reconnect, or    nothing is tried, no account is barred
//	                    a person's Login
//	a lane              what was under way is asked   the same
//	                    on another; it comes back
//	                    when it is needed
//	a lane refused      none is tried for a minute,   the same
//	                    then two, up to an hour
//
// A server that is silent for half the timeout while it owes an answer, or
// leaves out one answer for as long, is given up and called again; with what is
// asked at first, before the connection is used, it may take 20 s. One connector
// goroutine makes all logins, one after the other, with growing and jittered
// pauses; after a server turned us away, not within 15 s.
//
// # Locks
//
//	handlePool.mu, carried.mu
//	  File.mu
//	    conn.mu
//	Layer.mu
//	  conn.mu, window.mu: nothing is locked under them
//
// None is held across I/O. File.opening is a token, waited for with a context,
// and held across the exchange that opens the file anew.
//
// Start reading at Layer, then conn, lane and serial.go.
package remote
