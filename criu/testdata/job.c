/*
 * A process with one of everything that a CRIU image can describe, for make.sh:
 * it opens them below its first argument, says so by making the file "ready"
 * there, and sleeps for good. A second argument is a directory to make the root
 * of its mount namespace first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_new(const char *name, int flags, mode_t mode, size_t size)
{
	char block[4096];
	int fd = open(name, O_CREAT | O_RDWR | O_TRUNC, 0600);

	if (fd < 0)
		die(name);
	memset(block, 'a', sizeof(block));
	while (size > 0) {
		size_t n = size < sizeof(block) ? size : sizeof(block);

		if (write(fd, block, n) != (ssize_t)n)
			die(name);
		size -= n;
	}
	if (fchmod(fd, mode))
		die(name);
	close(fd);
	fd = open(name, flags);
	if (fd < 0)
		die(name);
	return fd;
}

/* Goes on as /srv/bin, so that no mapping or descriptor is left from outside. */
static void enter(const char *root, const char *dir)
{
	if (chdir(root) || syscall(SYS_pivot_root, ".", "old") || chdir("/"))
		die("pivot_root");
	if (mount("proc", "/proc", "proc", 0, NULL) || umount2("/old", MNT_DETACH) || setsid() < 0)
		die("mount");
	close_range(0, ~0U, 0);
	execl("/srv/bin", "bin", dir, NULL);
	die("/srv/bin");
}

int main(int argc, char **argv)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	struct epoll_event ev = { .events = EPOLLIN };
	sigset_t set;
	int p[2], fd, ep;

	if (argc == 3)
		enter(argv[2], argv[1]);
	if (argc < 2 || chdir(argv[1]))
		die("usage: job DIR [ROOT]");
	umask(0);

	fd = open_new("read-only", O_RDONLY, 0440, 10000);
	if (lseek(fd, 1234, SEEK_SET) != 1234)
		die("lseek");
	open_new("appended", O_WRONLY | O_APPEND, 0644, 77);
	open_new("read-write", O_RDWR, 0664, 5000);
	open_new("a name\nwith \xff bytes", O_RDONLY, 0644, 3);

	fd = open_new("mapped-shared", O_RDWR, 0644, 8192);
	if (mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
		die("mmap");
	close(fd);
	fd = open_new("mapped-private", O_RDONLY, 0644, 12288);
	if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 4096) == MAP_FAILED)
		die("mmap");
	close(fd);

	open_new("deleted", O_RDWR, 0644, 6);
	if (unlink("deleted"))
		die("unlink");

	if (pipe(p))
		die("pipe");
	if (mkfifo("fifo", 0600) || open("fifo", O_RDWR) < 0)
		die("fifo");

	strcpy(sun.sun_path, "socket");
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || bind(fd, (void *)&sun, sizeof(sun)) || listen(fd, 1))
		die("socket");

	fd = eventfd(3, 0);
	ep = epoll_create1(0);
	if (fd < 0 || ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		die("epoll");
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (signalfd(-1, &set, 0) < 0 || timerfd_create(CLOCK_MONOTONIC, 0) < 0)
		die("signalfd");

	if (mkdir("watched", 0755))
		die("watched");
	fd = inotify_init();
	if (fd < 0 || inotify_add_watch(fd, "watched", IN_CREATE) < 0)
		die("inotify");

	if (mkdir("child-cwd", 0750))
		die("child-cwd");
	switch (fork()) {
	case -1:
		die("fork");
	case 0:
		if (chdir("child-cwd"))
			die("chdir");
		for (;;)
			pause();
	}
	close(open_new("ready", O_RDONLY, 0600, 0));
	for (;;)
		pause();
}
