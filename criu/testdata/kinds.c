/*
 * What job.c leaves out, for make.sh: every other kind of reference that CRIU can
 * dump. Usage: kinds DIR [ROOT]; with ROOT, which becomes the root directory first,
 * it is what processes have in a mount namespace of their own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int check(int ret, const char *what)
{
	if (ret < 0) {
		perror(what);
		exit(1);
	}
	return ret;
}

static int make(const char *name, int flags, size_t size)
{
	int fd = check(open(name, O_CREAT | O_RDWR, 0644), name);

	check(ftruncate(fd, size), name);
	check(pwrite(fd, "k", 1, 0), name);
	close(fd);
	return check(open(name, flags), name);
}

static char *map(int fd, int prot, int flags, size_t size)
{
	char *p = mmap(NULL, size, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		check(-1, "mmap");
	return p;
}

static void lock(int fd, int cmd, off_t start, off_t len)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len };

	check(fcntl(fd, cmd, &l), "lock");
}

static void locks(void)
{
	int fd = make("posix-lock", O_RDWR, 8192);

	lock(fd, F_SETLK, 100, 10);
	map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 8192);
	check(flock(make("flock", O_RDWR, 10), LOCK_EX), "flock");
	lock(make("ofd-lock", O_RDWR, 10), F_OFD_SETLK, 0, 0);
}

static void unnamed(void)
{
	int fd = make("linked", O_RDWR, 100);
	pid_t child;

	check(link("linked", "other-name"), "link");
	check(unlink("linked"), "unlink");

	fd = make("mapped-deleted", O_RDWR, 4096);
	map(fd, PROT_READ, MAP_PRIVATE, 4096);
	close(fd);
	check(unlink("mapped-deleted"), "unlink");

	check(mkdir("deleted-dir", 0700), "mkdir");
	check(open("deleted-dir", O_RDONLY | O_DIRECTORY), "deleted-dir");
	check(rmdir("deleted-dir"), "rmdir");

	fd = check(memfd_create("kinds", 0), "memfd");
	check(ftruncate(fd, 4096), "memfd");
	map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 4096)[0] = 1;

	child = check(fork(), "fork");
	if (child == 0)
		for (;;)
			pause();
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/comm", child);
	check(open(path, O_RDONLY), path);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* None of the network: CRIU 4.1 cannot dump those on Linux 6.18 (SO_PASSCRED is gone from them). */
static void sockets(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd;

	strcpy(un.sun_path, "gone-socket");
	fd = check(socket(AF_UNIX, SOCK_DGRAM, 0), "socket");
	check(bind(fd, (void *)&un, sizeof(un)), "bind");
	check(unlink("gone-socket"), "unlink");

	/* make.sh's own listens there: a process that is not dumped. */
	strcpy(un.sun_path, "outside");
	if (!access("outside", F_OK)) {
		fd = check(socket(AF_UNIX, SOCK_DGRAM, 0), "socket");
		check(connect(fd, (void *)&un, sizeof(un)), "connect");
	}
}

static void watches(void)
{
	int fd = check(inotify_init(), "inotify");

	close(make("watched-file", O_RDONLY, 1));
	check(inotify_add_watch(fd, "watched-file", IN_MODIFY), "watch");
	fd = fanotify_init(FAN_CLASS_NOTIF, O_RDONLY);
	if (fd < 0)
		return;
	close(make("marked-file", O_RDONLY, 1));
	check(fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "marked-file"), "fanotify_mark");
	check(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_MODIFY, AT_FDCWD, "/"), "fanotify_mark");
}

static void special(void)
{
	char *p;
	int fd = check(posix_openpt(O_RDWR | O_NOCTTY), "ptmx");

	check(grantpt(fd), "ptmx");
	check(unlockpt(fd), "ptmx");
	check(open(ptsname(fd), O_RDWR | O_NOCTTY), "pts");

	check(mknod("own-zero", S_IFCHR | 0600, makedev(1, 5)), "mknod");
	check(open("own-zero", O_RDONLY), "own-zero");

	check(mkdir("held-dir", 0711), "mkdir");
	check(open("held-dir", O_RDONLY | O_DIRECTORY), "held-dir");

	fd = make("changed-privately", O_RDONLY, 3 * 4096);
	p = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 3 * 4096);
	p[4096] = 1;
}

static void *wait_forever(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void tasks(void)
{
	pthread_t t;

	if (pthread_create(&t, NULL, wait_forever, NULL))
		exit(1);
	if (!check(fork(), "fork")) {
		check(setsid(), "setsid");
		check(mkdir("child-root", 0755), "mkdir");
		check(chroot("child-root"), "chroot");
		check(chdir("/"), "chdir");
		wait_forever(NULL);
	}
}

/* A namespace with a bind of a part of itself, a tmpfs, and what make.sh mounted. */
static void enter(const char *root, const char *dir)
{
	check(chdir(root), root);
	check(syscall(SYS_pivot_root, ".", "old"), "pivot_root");
	check(chdir("/"), "/");
	check(mount("proc", "/proc", "proc", 0, NULL), "proc");
	check(umount2("/old", MNT_DETACH), "umount");
	check(mkdir("/srv/part", 0755), "mkdir");
	check(mkdir("/bound", 0755), "mkdir");
	check(mount("/srv/part", "/bound", NULL, MS_BIND, NULL), "bind");
	check(mkdir("/tmpfs", 0755), "mkdir");
	check(mount("tmpfs", "/tmpfs", "tmpfs", 0, "size=64k"), "tmpfs");
	check(setsid(), "setsid");
	close_range(0, ~0U, 0);
	execl("/srv/kinds", "kinds", dir, NULL);
	check(-1, "/srv/kinds");
}

int main(int argc, char **argv)
{
	if (argc == 3)
		enter(argv[2], argv[1]);
	if (argc < 2)
		return 1;
	check(chdir(argv[1]), argv[1]);
	umask(022);
	if (!access("/bound", F_OK)) {
		make("/bound/in-bind", O_RDONLY, 300);
		make("/external/outside", O_RDWR, 400);
		make("/tmpfs/in-memory", O_RDWR, 500);
		make("plain", O_RDWR, 600);
	} else {
		locks();
		unnamed();
		sockets();
		special();
		tasks();
	}
	watches();
	close(make("ready", O_RDONLY, 1));
	wait_forever(NULL);
}
