// Package server is an SFTP version 3 server, as OpenSSH's sftp-server is one: any
// SFTP client can use it. For our own client it has what SFTP lacks (package
// extension): whole attributes, extended attributes, holes, hashes, and many files
// in one exchange.
//
// It serves one client on two streams, with the rights of its process, and
// is meant to be what sshd runs: as a subsystem, by the client's request, or as a
// ForceCommand. The client is not trusted:
//
//   - With Config.Dir nothing outside of that directory is reached. The kernel sees
//     to it (openat2, RESOLVE_BENEATH): a ".." or a symlink that leads out is
//     refused, at the moment it is used, and so is an absolute symlink, whatever it
//     leads to. Paths stay what they are: DIR/x is called DIR/x.
//   - With Config.ReadOnly nothing is changed: what would is refused before it is
//     looked at.
//   - Only regular files are opened, and looked at before: a FIFO or a device is
//     never touched, and no request waits for anybody.
//   - Packets, handles, answers and what a walk remembers are bounded; requests are
//     served one after the other, and none is read while the client does not take
//     its answers.
//
// Requests on names follow symlinks where OpenSSH's server does (OPEN, STAT,
// SETSTAT, OPENDIR, REALPATH), but for magic links in /proc. Ours never do.
//
// Answers come in the order of the requests, and handles are numbered as OpenSSH
// numbers them.
//
// Start reading at Serve.
package server
