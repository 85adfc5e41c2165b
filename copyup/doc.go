// Package copyup brings one file from a lower to the upper.
//
// # Steps, and what a crash or an error after each leaves
//
// A regular file whose data is at hand (File, then Publish):
//
//	1  nameless file in the target directory (O_TMPFILE)  nothing: it goes with its descriptor
//	2  owner, on the empty file: the quota is the user's    as 1
//	3  data: reflink, copy_file_range or read and write     as 1; ENOSPC or EDQUOT is returned. A source that
//	                                                        is longer or shorter afterwards is ErrChanged
//	4  inherited ACLs dropped, mode, xattrs, ACLs, times    as 1. A copy that is cut short for a truncate
//	                                                        keeps the present time: that is the change
//	5  fsync of the file, and a close(2) of it              as 1
//	6  link at the target's name, never over another        the name shows the whole copy; the lower copy
//	                                                        is still there and has the same content
//	7  fsync of the target directory                        durable: from here a lower copy may go
//
// Where the upper has no O_TMPFILE, step 1 makes a temporary name in the work
// directory, and a crash before step 6 leaves that name: Sweep removes it at the
// next mount. Nothing in the lower is touched here. An error at any step leaves
// the lower as it was, removes what was made, and is returned as it came.
//
// A metacopy (Source.Bare) goes the same way: step 3 sets the size alone, and step
// 4 the mark that says where the data is. Complete gives it its data later, where
// it stands:
//
//	i    data, into the inode that is marked      the mark stands: the data below counts. A failure
//	                                              takes the data out again
//	ii   capabilities, mode and times put back    as i
//	iii  fsync                                    as i
//	iv   the mark removed, by the caller          the file is whole
//	v    fsync, by the caller                     an fdatasync from now on is enough for what is written
//
// Directories, symlinks and device nodes have no nameless form (Node): they are
// made under a temporary name in the work directory, get their metadata there,
// and are renamed into place, never over another.
//
// # Where other hosts bring up the same files
//
// A regular file is then made as a claim (Claims): CLAIMS/ID, of which there is one
// for each lower inode.
//
//	1   CLAIMS/ID, made O_EXCL                               a claim without change: who needs the file breaks
//	                                                         it, else it is swept
//	2-5 as above, on the claim; its origin is set with the   as 1
//	    metadata. Signs of life end before its times are set
//	6   link by descriptor; ENOENT says that the claim was   the name shows the whole copy; the claim is a
//	    revoked, EEXIST on the same inode is success         further name of it
//	6a  CLAIMS/ID unlinked                                   as above
//	7   as above
//
// Who changes the lower file meanwhile has unlinked the claim, so that 6 fails, or
// finds the copy in the upper, by its origin. Who has a lock leaves CLAIMS/ID, a
// symlink, if it dies. A claim that is broken while its owner lives costs that
// owner a new beginning.
//
// # Removing the lower copy (migrate mode)
//
// Never by path alone: the name may hold another file by now. Remove does, after
// step 7:
//
//	a  symlink LOWER/.migratefs/trash/IN.path -> path      a name that leads nowhere: removed
//	b  rename lower name to trash/IN                       the upper's copy shows; Settle decides by the
//	                                                       identity that is part of IN
//	c  compare inode, birth time, size, mtime with IN      as b
//	d  match: unlink trash/IN; mismatch: link it back      done; or: the other's file is at its name again
//	e  unlink IN.path                                      done
//
// IN is like no other, so that the rename takes nothing away, whoever else removes
// that name. The order of a and b needs no fsync: both are operations on names of
// one filesystem, whose journal (or server) keeps them in order.
//
// Keep ends after c: a match stays in the trash. KeepLink links it there before another
// file is renamed over its last name; if that does not come to pass, Settle finds it at
// its name and takes it out of the trash. On a full lower a is left out.
//
// Settle runs at any mount, while other hosts are at these steps. It ends d where
// the upper has the file with that origin at that path. Else a match stays in the
// trash: back at its name, an older version would show as soon as the upper loses
// the name, as it may have by now. So does one whose unlink fails, as IN.done, which
// Settle removes in any case. A lone IN.path may be of a host that is between a and
// b: it goes when it is old.
//
// # Data
//
// Blocks are shared where the filesystem can (FICLONERANGE, also for a part), else
// copied by copy_file_range or, between filesystems, by hand. Holes stay holes. A
// large file is cut into pieces for a few workers (crew), of a size that the storage
// does in a moment: between two pieces an interrupt is seen. What was written is on
// its way to the disk while the rest is copied.
//
// Start reading at File.
package copyup
