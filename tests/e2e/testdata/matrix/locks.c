/* Locks on files. */
#include "matrix.h"
#include <sys/file.h>

static struct flock range(short type, off_t start, off_t len)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

/* Each in a process that has nothing to do with who has the lock. */
static int try_flock(void)
{
	return flock(open(at("f"), O_RDWR), LOCK_EX | LOCK_NB) ? errno : 0;
}

static int try_first(void)
{
	struct flock l = range(F_WRLCK, 0, 100);

	return fcntl(open(at("f"), O_RDWR), F_SETLK, &l) ? errno : 0;
}

static int try_second(void)
{
	struct flock l = range(F_WRLCK, 100, 100);

	return fcntl(open(at("f"), O_RDWR), F_SETLK, &l) ? errno : 0;
}

static void whole_file(void)
{
	int fd = make("f", O_RDWR, 0660);

	check(!flock(fd, LOCK_EX) && in_child(try_flock) == EWOULDBLOCK);
	moved();
	check(in_child(try_flock) == EWOULDBLOCK);
	check(!flock(fd, LOCK_UN) && in_child(try_flock) == 0);
}

static void posix_range(void)
{
	struct flock l = range(F_WRLCK, 0, 100);
	int fd = make("f", O_RDWR, 0660);

	check(!fcntl(fd, F_SETLK, &l) && in_child(try_first) == EAGAIN && in_child(try_second) == 0);
	moved();
	check(in_child(try_first) == EAGAIN && in_child(try_second) == 0);
	l.l_type = F_UNLCK;
	check(!fcntl(fd, F_SETLK, &l) && in_child(try_first) == 0);
}

static void read_range(void)
{
	struct flock l = range(F_RDLCK, 0, 100);
	int fd = make("f", O_RDONLY, 0444);

	check(!fcntl(fd, F_SETLK, &l) && in_child(try_first) == EAGAIN);
	moved();
	check(in_child(try_first) == EAGAIN);
}

static void ofd_range(void)
{
	struct flock l = range(F_WRLCK, 0, 100);
	int fd = make("f", O_RDWR, 0660);

	check(!fcntl(fd, F_OFD_SETLK, &l) && in_child(try_first) == EAGAIN);
	moved();
	check(in_child(try_first) == EAGAIN && in_child(try_second) == 0 && !close(fd) && in_child(try_first) == 0);
}

/* What SQLite does with its write-ahead log. CRIU maps a file that is mapped shared
 * through a descriptor that it closes when the locks are there again: the close
 * drops them. */
static void locked_and_mapped(void)
{
	struct flock l = range(F_WRLCK, 0, 100);
	int fd = make("f", O_RDWR, 0660);
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	check(p != MAP_FAILED && !fcntl(fd, F_SETLK, &l) && in_child(try_first) == EAGAIN);
	moved();
	p[0] = 'x';
	check(in_child(try_first) == EAGAIN);
}

static void lease(void)
{
	int fd = make("f", O_RDONLY, 0444);

	check(!fcntl(fd, F_SETLEASE, F_RDLCK));
	moved();
	check(fcntl(fd, F_GETLEASE) == F_RDLCK);
}

const struct kind locks[] = {
	{ "flock", whole_file },
	{ "lock", posix_range },
	{ "lock-read", read_range },
	{ "lock-ofd", ofd_range },
	{ "lock-mapped", locked_and_mapped },
	{ "lease", lease },
	{ NULL },
};
