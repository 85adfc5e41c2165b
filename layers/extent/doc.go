// Package extent keeps parts of files that lie on another host: a sparse data
// file with the bytes that are here, and a durable map of which ranges (extents)
// those are.
//
// One kind of Object serves two purposes. A *cached* object holds what was read
// of one version of a source file; losing it costs a refetch, nothing else. A
// *pending* object is the content of a file that is already ours to write while
// its missing bytes still lie on the source; it may hold the only copy of what
// somebody wrote. Adopt turns the first into the second without moving data.
//
// # Where a byte comes from
//
// The size of the data file is the size of the object. Every object has a limit:
// the smallest size it ever had, at first the size of the source's version.
//
//	off >= limit    the data file is the whole truth; holes are zeros
//	off <  limit    present: the data file; missing: the source, through a Fetcher
//
// A present range is clean (fetched) or dirty (written here, or zeroed). Clean
// ranges could be fetched again, dirty ones never. What lies in the data file
// under a missing range has no meaning and is never returned. Fetched bytes have
// checksums (pieces.go): after the store was opened they do not count as present
// before they were compared with them, and are missing if they differ. That can
// never hit what was written here: no sum speaks of it. A source's bytes
// at or beyond the limit are never asked for, so what a truncate cut off cannot
// come back when the file grows again.
//
// # What survives what
//
// The map is a log (FORMAT.md). A record is written right after the data it
// speaks of, without waiting for either to reach the disk. Whoever reads it later
// asks first whether the host has been restarted since:
//
//   - Same boot id: the page cache has kept the order of our writes. Every record
//     counts, so a killed daemon has lost nothing that had returned.
//   - Another boot: records may have reached the disk before their data. Only
//     those count that are covered: by a barrier (Object.Sync: data synced, then
//     the barrier, then the map synced) or by an epoch (Store.Sync: syncfs, then
//     the epoch is declared durable in the file "epochs"). The rest is missing
//     again, which is what an unsynced write may cost.
//
// In a shared store all records count, of whatever boot, and only what has a sum.
//
// A crash at each step, K for a killed daemon, P for a host that lost power:
//
//	operation        step                        a crash after it leaves
//	Cached           1 create c.data, set size   no map: swept at the next OpenStore
//	                 2 create c.map              half an object: thrown away when next opened
//	                 3 write its header          K an empty object; P that, or half of one
//	NewPending       1 create p.data, set size,  no ID was returned, no stub names it: an
//	                   fsync                     orphan that Pendings lists
//	                 2 p.tmp, header, fsync      the same; p.tmp is swept
//	                 3 rename p.tmp p.map        the same
//	                 4 fsync directory           an empty pending object
//	fetched data     1 write data                bytes under a missing range: without meaning
//	                 2 append pieces             K present; P missing, or present if covered
//	WriteAt, Punch   1 append "cleared"          sums of the pieces it reaches into are not checked
//	into a piece     2 fdatasync map, the first  as before; after a later P no sum of this boot's
//	                   time in a boot, and for   pieces is checked, as the disk may have 3 and not
//	                   pieces of former boots    1; sums of former boots' are
//	WriteAt          3 write data                K a write that had not returned: bytes under a
//	                                             missing range do not show, others do
//	                 4 append "written"          K the new bytes; P the old or the new ones
//	across the limit 1 to 4 up to the limit      its beginning
//	                 5 write data beyond it      as much of it as was written
//	Punch            3 punch data                K as WriteAt 3
//	                 4 append "written"          K zeros; P the old bytes or zeros
//	a sum is wrong   1 append "dropped"          K missing; P found to be wrong again
//	                 2 fdatasync map, if pieces  missing
//	                   were cleared in this boot
//	Truncate below   1 append "shrink"           K done at reopening; P not done or done
//	the limit        2 fdatasync map             done at reopening
//	                 3 ftruncate data            done (at reopening, if P undid it)
//	                 4 append "shrunk"           done; P undoes what grew since, unless covered
//	Truncate, else   1 ftruncate data            done, or undone by P
//	Sync             1 fdatasync data            data is there, P the map does not know yet
//	                 2 append barrier            P covered if it reached the disk: rightly so
//	                 3 fdatasync map             covered
//	Store.Sync       1 next epoch begins         nothing new is covered
//	                 2 syncfs                    nothing new is covered
//	                 3 replace "epochs", fsync   all records of former epochs are covered
//	Adopt            1 fdatasync map             a cached object
//	                 2 rename c.data p.data      c.map without data, p.data without map: the first
//	                                             is thrown away, the second is an orphan; both clean
//	                 3 rename c.map p.map        an orphan that Pendings lists
//	                 4 fsync directory           a pending object
//	Adopt from a     1 to 4 of NewPending        an orphan
//	shared store     5 clone or copy data        bytes under missing ranges
//	                 6 append pieces             present, once they are proved
//	compaction       1 fdatasync data            as before
//	                 2 write and sync .tmp       as before; .tmp is swept
//	                 3 rename .tmp .map          the old or the new map, which say the same; the
//	                                             new one counts only after the directory is synced
//	eviction of a    1 unlink c.map              half an object: swept at the next OpenStore
//	whole object     2 unlink c.data             nothing
//	eviction of      1 append "dropped"          K missing; P missing, or 2 is found: no sum is
//	ranges                                       right, and it is missing again
//	                 2 punch data                missing
//	Remove           1 unlink p.map              p.data alone: Pending says ErrCorrupt,
//	                                             Pendings lists it, Remove removes it
//	                 2 unlink p.data             nothing
//
// The order in Truncate differs from the rest because the data file's size is
// the one thing that is not versioned by the log: were it cut first and the
// record lost, ranges that the map calls present would read as zeros.
//
// If a record cannot be appended (ENOSPC) after its data was written, WriteAt
// returns the error, the range counts as present in memory, and the record is
// owed: the next mutation appends it first, or fails before it touches anything.
//
// A map that contradicts itself is layers.ErrCorrupt for a pending object: it
// is never guessed at, and no source byte is put where a written one may have
// been. A cached object in that state is thrown away.
//
// # What goes
//
// Cached data is evicted (evict.go): at any moment, whoever reads. A range that was
// found present may be missing when it is read, so readers look afterwards whether
// anything has gone since, and do it again; only Object.Pin keeps it. What is
// pending never goes.
//
// # Locks
//
//	Store.reclaimMu     one round of eviction at a time
//	Store.syncMu        one Store.Sync at a time
//	Object.syncMu       one sync, cut, adoption or compaction of an object at a time
//	  Object.wmu        one mutation at a time: data write + record; held across local disk I/O
//	    Store.gate      shared while a record is appended, exclusive to begin an epoch
//	    Object.mu       sizes, ranges, fetches in flight; no I/O under it but ftruncate
//	      Store.mu      which objects are open; no I/O under it
//
// None is held while a source is asked. Readers of present ranges take
// Object.mu shared, and nothing else, once what they read was proved; a proof takes
// Object.wmu for as long as one piece takes. A compaction, which begins under wmu,
// only tries to get syncMu.
//
// A Store does not lock its directory; the mount does that for the whole work
// directory. A shared one does (shared.go); that lock is taken with Store.reclaimMu
// or none.
//
// Start reading at Store.Cached, Object.ReadAt and replay.
package extent
