// Package extension is what migratefs's own SFTP server and its client say to each
// other beyond SFTP version 3: names, and the encoding of what they carry. Both
// ends import it; neither trusts the other, so whatever is decoded is checked.
//
// Every name ends in "@migratefs". The server's VERSION packet has each with its
// version, "1" so far; a client uses what it knows in a version it knows. Numbers
// are big-endian, a string is a 32-bit length and bytes, a time is 64 bits of
// seconds (signed) and 32 bits of nanoseconds. Requests are SSH_FXP_EXTENDED, whose
// first string is the name; what follows in each:
//
//	name              request                       answer
//	attrs@migratefs   -                             STATUS. From then on all ATTRS that the server
//	                                                sends carry the extended pair statx@migratefs
//	                                                (type Stat), and long names are empty;
//	                                                statvfs@openssh.com and fstatvfs@ answer with
//	                                                inode (64) and birth time of the file behind
//	                                                their fields
//	xattrs@migratefs  path, u32 first               EXTENDED_REPLY: u32 next, u32 n, n times name
//	                                                and value, both strings, sorted by name. Next,
//	                                                if not 0, is the first to ask for the rest with.
//	                                                No symlink is followed anywhere
//	extents@migratefs handle, u64 offset            EXTENDED_REPLY: u64 end, u32 n, n times u64
//	                                                offset, u64 length: what in [offset, end) is
//	                                                data. All else in it is holes; at the end of
//	                                                the file, end is 2^63-1
//	get@migratefs     path, u64 offset, u32 length  EXTENDED_REPLY: ATTRS, taken after the read, and
//	                                                the bytes as a string: fewer only at the end
//	                                                of the file. No symlink is followed anywhere
//	tree@migratefs    path, u32 depth               HANDLE, for READDIR: names are paths from the
//	                                                directory on. Each directory that was listed
//	                                                is "DIR/." with its attributes, then its names,
//	                                                then "DIR/..", which is missing if the listing
//	                                                failed; directories deeper than depth (1: the
//	                                                directory alone) are names only. No symlink is
//	                                                followed anywhere
//	hash@migratefs    path, algorithm ("sha256"),   EXTENDED_REPLY: ATTRS, taken after the read,
//	                  u64 offset, u64 length        and the hash as a string. At most MaxHash
//	                                                bytes at once. No symlink is followed anywhere
//
// A path is as in SFTP. What fails is a STATUS, with the errno behind its two strings
// once attrs@migratefs was asked for.
//
// Start reading at Stat. Decoder is what both ends read any packet with.
package extension
