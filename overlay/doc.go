// Package overlay is the merged filesystem: one tree over a stack of layers,
// served to the kernel through go-fuse's RawFileSystem.
//
// # Nodes and identity
//
// A node is one file of the merged tree as the kernel knows it. It keeps its id
// and its st_ino for life: through copy-up, rename and the removal of its lower
// copy. It is found again by the inode it has in a layer (device and number, and
// birth time against reuse: fileID.is; where there is none, the layer tells) or, where a layer has no inodes, by path and version:
// another version on a source is another node, so that the kernel's page cache
// never holds two versions of one file. st_ino is the file's own number on the
// upper's device and a hash elsewhere; a table keeps two nodes from sharing one.
//
// A node holds no path. Where it lies follows from its names (its parents and
// what it is called there), which renames change; a directory's descriptor in a
// local layer is opened by path, compared with the inode that was looked up, and
// kept in a small cache. Everything below a directory goes by (descriptor, name).
//
// # What may be held while what is done
//
//	flights (one per node: who brings it up)   any I/O; waiting for it is interruptible
//	node.mu (file, then directories above it;  calls on the upper and on local lowers that
//	         two files in the order of ids)     do not move data; never a source
//	fileLocks.mu (per node: who has locked)    calls on a local layer that do not wait for a lock
//	FS.window (a directory has moved in some   one rename in each layer; it can be waited for with
//	         layers and not in others)         any lock held, since nothing is waited for in it
//	swaps.mu (one pending file turns ordinary)  calls on the upper that do not move data
//	ending.coming (shared: a file becomes      calls on the upper that do not move data
//	         pending; exclusive: a detach)
//	FS.tree (all names)                        nothing: memory only
//	stream.mu (per handle: how it is read)     a look at what an object has
//	trail.mu                                   may take those below, asks a source's memory
//	  ahead.mu, then family.mu, link.mu        nothing: memory only
//	ending.mu                                  one line appended; the one rename of a detach
//	table.mu, dirCache.mu, handleTable.mu,     nothing: memory only
//	fill.mu
//	FS.timesMu (per directory in the upper)    one name made there, and its times put back
//
// in this order. No lock is held while a source is asked. FS.dirMoves, then FS.removing come
// before the locks of directories, with hosts=single; FS.removing after those of files.
//
// # Invariants
//
//   - A node that has an upper never goes back to a lower: what a look at the
//     layers found may be older than a copy-up.
//   - What a look found becomes a node, and a name of one, only if no name has gone from
//     the directory since the look began, or the next look finds it again (FS.find). In
//     the table the inode that was born later has the number (table.bind).
//   - A handle's descriptor is only ever set, by the copy-up: an old read-only
//     descriptor sees what is written through a new one.
//   - How the kernel reaches a file's data (node.io) is decided at its first open
//     and stays until the last is closed. In passthrough it is the upper file.
//   - The upper inode of a metacopy holds no data, or a part of it: nothing reads it,
//     nor writes to it but the copy-up that completes it (node.dataInUpper).
//   - A pending file turns into an ordinary one with node.mu held, and never back: who
//     changes its stub holds node.mu too (openChanging, stayingView), and who looks at
//     stub and object without it looks again if one turned meanwhile (swap.go).
//   - A name in the upper hides the same name in lowers: an older copy, or the one that
//     it came of, for a while or, with keep_lower, for as long as it has the name. Nothing
//     gives up a name in the upper before those are gone, durably.
//   - Who has looked a file up may open it after its last name went: a descriptor
//     is kept until the kernel forgets it (node.kept). So it is of a file that never
//     had a name (O_TMPFILE), which unlike the other is not dead: Link may give it one.
//   - What a client has locked is locked on the inode that shows, where it lies in
//     a layer that we may change: on a copy before it has its name.
//   - What a lower has lost is durable before the name that hides it goes from a layer
//     above (unsynced.go): no loss of power brings an older version back. The index is such
//     a name for what has come up by another one: it is durable before the first goes from
//     the lower, and an entry goes when all that was looked up below is gone, durably.
//   - What the kernel may keep: contents by inode, for good where only this mount
//     changes them (FS.Alone), else dropped when size or mtime change, by an open that
//     finds another version (keep.go), and before a lock is granted; names and attributes for entry_timeout and attr_timeout,
//     of what a source has for what is left of them (request.left),
//     attributes of what it may change itself not at all (node.attrTimeout).
//   - A lower on another host is asked through its leaving, and by a detached mount not at
//     all. What was detached never is anything else again.
//   - What is fetched ahead of who will ask (ahead.go) goes where a fetch that somebody
//     waited for would have gone, as the version that the object is for, and is never
//     what a request's answer is made of by itself.
//
// # What a crash leaves
//
// Every operation either shows as before or as after it, whatever change a crash
// comes before: what it prepares has no name in the tree until the last step,
// which is one link or rename. The next New sweeps the rest.
//
//	create, mkdir, mknod, symlink, link
//	    at a free name               one call of the upper
//	    over a whiteout              WORK/tmp-*, then renamed (directories: exchanged); the
//	                                 whiteout stands until then
//	O_TMPFILE                        a file without a name in the upper: it goes with its descriptors.
//	                                 Then link, as above
//	unlink, rmdir, overlay mode      a whiteout linked, or renamed over the name; a directory
//	                                 with whiteouts in it is exchanged, then cleared in WORK. A
//	                                 hard-linked lower file comes up first, which holds the
//	                                 count of names left
//	unlink, rmdir, migrate mode      the lowest layer first, each directory synced before the
//	                                 next higher: the newest copy goes last
//	rename, overlay mode             both ends in the upper, redirect or opaque set before the
//	                                 one rename (RENAME_WHITEOUT where a lower has the name)
//	any of those on many hosts       UPPER/.migratefs/claims/ID first, a symlink, unlinked last: who needs
//	                                 the file breaks it. So claims/ID+NAME, of a directory in a
//	                                 lower, where a name is given in it or in the upper's part:
//	                                 what gets it in the one does not hide what does in the other. What is hidden goes by the trash
//	rename, migrate mode             older copies under the old name go first; one rename in
//	                                 the layer that shows the file; synced; older copies under
//	                                 the new name go. Of those, what cannot be removed stays
//	                                 hidden, and the rename has succeeded; a file in the upper has
//	                                 noted before (copyup.XattrOver) which they are: a drain ends it.
//	RENAME_NOREPLACE in a lower      on many hosts, of what is no directory, the new name is linked and
//	                                 the old one unlinked: a crash between leaves both
//	rename of a directory in several before UPPER/.migratefs/rename (intent.go) is whole and durable: as
//	layers, or an exchange with one, before. Then one rename in each layer, the lowest first, but where an
//	hosts=single                     empty directory is replaced, which goes last: the next mount does
//	                                 what is left, or takes it back if that cannot be done; if nothing
//	                                 had moved, nothing does. All synced; the intent removed, synced
//	write, truncate, ...             copy-up (package copyup), then the change. A truncate that
//	                                 brings up less than all is one step.
//	lower copies, migrate mode       a copy-up leaves the name in both layers; a worker (removals.go)
//	                                 makes many names durable, then removes their lower copies. A
//	                                 crash before that leaves both, and what takes the name away
//	                                 takes it from below first
//	first change of a remote file    the object durably pending; WORK/stubs/ID; the stub linked.
//	                                 Between: an object without a stub, or a stub with no other
//	                                 name, which are swept
//	chmod, chown, utimes, setxattr,  a metacopy where the format has them: WORK/index/ID as below, the
//	rename, link of a lower file     name. A redirect to the data is on it before another name is
//	first write to a metacopy        its data, synced, into the inode that is marked; the mark. Until
//	                                 it is gone the data below counts
//	truncate of a metacopy to 0      the size: one without bytes is empty; the mark
//	change of a pending file         the time, then the object (package extent)
//	fill of a pending file           what is fetched, in the object (package extent). When all is there:
//	  it has one name                the stub's metadata on the data file, synced; that renamed over
//	                                 the stub; the directory synced. Before the rename the file is
//	                                 pending and whole, after it an ordinary one. Then the map and
//	                                 WORK/stubs/ID go, which are swept
//	  several names                  the data into the stub, synced: it is pending, its mtime may be
//	                                 that of the copying; the mark taken off: an ordinary one. Synced,
//	                                 the object goes, then WORK/stubs/ID: swept, the stub has no mark
//	a source that changed            a note on the stub, synced
//	resolve: what is here            zeros for what is missing, range by range, synced: in conflict
//	                                 until the note says otherwise
//	resolve: what the source has     a copy aside, durable; an object for the source's version, durable;
//	                                 WORK/stubs/ID for it; the time; the object's id on the stub, which
//	                                 is the step; then the former object goes. What the stub does not
//	                                 name is swept
//	last name of a pending file      the name; then the object, then WORK/stubs/ID: swept
//	drain of a source                first changes and fills, as above
//	detach                           WORK/tmp-detached, synced; renamed to WORK/detached, which is the
//	                                 step, synced. Then what is pending and misses something, if that
//	                                 was given up, is noted as in conflict
//	settle                           WORK/detached as one that leaves nothing but the upper, which is the
//	                                 step; whiteouts and marks go, which mean nothing from then on; the
//	                                 rest of WORK; WORK/detached
//	copy-up in a directory           overlay mode: the directory is marked overlay.impure first
//	copy-up of a hard-linked file    the count (overlay mode: overlay.nlink; migrate mode: the
//	                                 marker LOWER/.migratefs/hl/ID and the name back), index/ID,
//	                                 the name. From index/ID on, all names show the copy.
//	                                 With many hosts the name comes before index/ID: the claim, which
//	                                 is a further name of the copy, leads who meets it there
//	drain                            copy-ups; a lower directory goes when it is empty, and its part in
//	                                 the upper durable with all above it
//	mount in migrate mode            LOWER/.migratefs/id, UPPER/.migratefs/id: a temporary name, whole and
//	                                 synced, linked, never replaced; UPPER/.migratefs/daemons/DAEMON, which
//	                                 the next mount of this host sweeps when its lock is free, and those of
//	                                 others after an hour without a sign of life
//
// A crash in the middle of a copy-up of a hard-linked file leaves a st_nlink that is
// one too high, never one too low: the copy would be given up, and an older lower
// file show, while a name still leads to it. The price is the space of a copy that
// no name leads to any more: it stays in the index. That is WORK/index or, in migrate
// mode, UPPER/.migratefs/index; WORK is UPPER/.migratefs/daemons/DAEMON there.
//
// A failure at any of these steps, other than those said to succeed, takes back
// what was prepared and is returned as it came.
//
// # Rights
//
// The kernel decides, on the attributes that it is shown, before it asks. What is
// made is made by FS.as, with the caller's ids; the rest is done with the daemon's. A
// handle may do what it was opened for. Config.AsCaller turns this round: see
// caller.go, where requests run as their callers (copies then lie in WORK/temps, and
// are swept from there).
//
// Start reading at FS and lookup.
package overlay
