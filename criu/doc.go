// Package criu reads what a CRIU checkpoint says about files, and runs CRIU.
//
// Load reads the images of a directory that `criu dump -D` wrote, or of an archive
// that a container engine made of one, and returns a Checkpoint: the tasks, every
// file they refer to with what the images know of it (path, mode, usually size and
// build-id), how each is referred to, which of them lie on storage that stays
// behind when the process moves, and what is in the way of a restore (Obstacles).
// Image formats are those of CRIU's images/*.proto, in the framing of its
// criu/protobuf.c; both files.img (3.0 and later) and reg-files.img with its
// siblings (before) are read.
//
// # What a checkpoint refers to
//
// Images are named as in files.img's time; before, each type of descriptor had its
// own. "Source" is fetched from the host that was dumped, "host" is taken from the
// one that restores.
//
//	reference                image                    served
//	open regular file        files, fdinfo            source; size, mode and build-id are compared first
//	directory held open      files, fdinfo            source
//	cwd, root                fs                       source
//	executable               mm                       source, or this host's identical copy
//	mapped file              mm, pagemap              source; of a private mapping, pages the task changed are in the images
//	deleted file             remap-fpath, ghost-file  images, made anew in its directory
//	  with another name      remap-fpath (LINKED)     source, by link_remap.N beside it, which CRIU links back
//	  of an ended process    remap-fpath (PROCFS)     CRIU makes a process to have it
//	file without a name      memfd, pagemap-shmem     images
//	FIFO                     files, fifo-data         name from the source, what was in it from the images
//	bound Unix socket        files                    made anew; its directory from the source
//	  of another process     files (USK_EXTERN)       no: obstacle, unless --ext-unix-sk and the service is here
//	inotify, fanotify        files (f_handle.path)    source, by path
//	  by handle only         files (f_handle)         no: a handle means nothing elsewhere; dump with --force-irmap
//	lock                     filelocks                CRIU takes it on the view; POSIX and mapped shared: lost by CRIU, on any filesystem
//	terminal                 tty, tty-info            pty made anew; console, serial: host; external: obstacle
//	device in /dev           files                    host
//	  elsewhere              files                    no: SFTP does not tell its number; mknod here and --bind
//	in /proc                 files                    fresh /proc
//	in /sys, /dev, /run      files                    host, if it is there: a tmpfs of the host's is in no image
//	TCP connection           files, tcp-stream        no: obstacle, unless --tcp-close or --tcp-established
//	plugin's or given file   files (EXT, reg.ext)     no: obstacle, a descriptor cannot be handed to CRIU here
//	pipe                     files, pipes-data        made anew; an end that another process had is gone: caution
//	tree, threads, sessions  pstree, core             CRIU makes them; a leader outside needs --shell-job
//	own mount namespace      mountpoints              CRIU mounts; paths are the namespace's, see Tree
//	own pid namespace        pstree, ids              CRIU makes it
//	  bind of its root       mountpoints              source, below the root; paths are translated
//	  external mount         mountpoints (ext_key)    source, once MapTree says where it lies there
//	  another disk           mountpoints              no: CRIU would mount the device; obstacle, unless mapped
//	  tmpfs                  tmpfs-dev                images
//	  proc, sysfs, devpts    mountpoints              CRIU mounts them fresh
//
// # Trust
//
// Images are read as if an enemy had written them: sizes are checked against
// the file before anything is allocated, names are checked before anybody uses
// them, memory stays within a small multiple of the images' size. Loading never
// opens a path that an image names. Of an archive, only what Load reads is kept in
// memory, and Unpack writes nothing but plain files into one directory. Restoring is another matter: it executes
// what the images hold, by definition.
//
// # Running CRIU
//
// A Worker is a `criu swrk`, started while this host's root is still the root.
// Its answer to Version means that it is loaded; then the caller makes the view
// the root, of CRIU too, and asks it to Restore. Until that ends CRIU looks at
// the view as its root, so whatever it would load or execute by name (plugins,
// iptables) has to be kept from it by StartWorker's environment: there it would
// be the source's, and run as root.
//
// A dump is the same the other way round: the caller enters the namespaces of the tasks,
// and has CRIU loaded before it gets their root. Dump's request tells when the images are
// written and the tasks still stand still, so that the images can be made durable first.
//
// Options that the RPC has no field for go through a configuration file
// (ConfigLines, DumpConfigLines); what went wrong is in CRIU's log (LogErrors, Summary, DumpSummary).
//
// Start reading at Load, Checkpoint and Worker.
package criu
