/* Directories, by every way to hold one. */
#include "matrix.h"
#include <dirent.h>
#include <sys/mount.h>
#include <sys/syscall.h>

static void directory(void)
{
	int fd, dir;

	check(!mkdir(at("d"), 0751));
	close(make("d/f", O_RDONLY, 0644));
	dir = open(at("d"), O_RDONLY | O_DIRECTORY);
	check(dir >= 0);
	moved();
	fd = openat(dir, "f", O_RDONLY);
	check(fd >= 0 && holds(fd, 0, SIZE));
	check(same(dir, open(at("d"), O_RDONLY)));
	check(mkdirat(dir, "new", 0755) == 0 && !access(at("d/new"), F_OK));
}

enum { NAMES = 300 };

/* Reads more names, at most the given number of bytes of them. */
static int more_names(int dir, int seen[NAMES], size_t size)
{
	char buf[32768];
	long n = syscall(SYS_getdents64, dir, buf, size);

	check(n >= 0);
	for (long i = 0; i < n;) {
		struct dirent64 *d = (void *)(buf + i);

		if (d->d_name[0] == 'n')
			seen[atoi(d->d_name + 1)]++;
		i += d->d_reclen;
	}
	return n;
}

/* Half of its names have been read: the rest follows, none is missing. */
static void directory_position(void)
{
	static int seen[NAMES];
	char name[20];
	int dir, before = 0;

	check(!mkdir(at("d"), 0755));
	for (int i = 0; i < NAMES; i++) {
		sprintf(name, "d/n%d", i);
		close(open(at(name), O_CREAT | O_WRONLY, 0644));
	}
	dir = open(at("d"), O_RDONLY | O_DIRECTORY);
	for (int i = 0; i < 3; i++)
		check(more_names(dir, seen, 1024) > 0);
	for (int i = 0; i < NAMES; i++)
		before += seen[i];
	check(before > 10 && before < NAMES - 10);
	moved();
	while (more_names(dir, seen, 32768) > 0)
		;
	for (int i = 0; i < NAMES; i++)
		check(seen[i] > 0);
	for (int i = 0; i < NAMES; i++)
		check(seen[i] == 1);
}

/* All have been read: there is nothing more, until it is rewound. */
static void directory_end(void)
{
	static int seen[NAMES];
	int dir;

	check(!mkdir(at("d"), 0755));
	close(make("d/n1", O_RDONLY, 0644));
	dir = open(at("d"), O_RDONLY | O_DIRECTORY);
	while (more_names(dir, seen, 1024) > 0)
		;
	moved();
	check(!lseek(dir, 0, SEEK_SET));
	while (more_names(dir, seen, 1024) > 0)
		;
	check(seen[1] == 2);
}

static void working_directory(void)
{
	char cwd[1024];
	int fd;

	check(!mkdir(at("d"), 0755));
	close(make("d/f", O_RDONLY, 0644));
	check(!chdir(at("d")));
	moved();
	check(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, at("d")));
	fd = open("f", O_RDWR);
	check(fd >= 0 && holds(fd, 0, SIZE));
	check(!mkdir("new", 0755) && !access(at("d/new"), F_OK));
}

static void deleted_directory(void)
{
	struct stat st;

	check(!mkdir(at("d"), 0755) && !chdir(at("d")) && !rmdir(at("d")));
	moved();
	check(!stat(".", &st) && S_ISDIR(st.st_mode));
	check(access(at("d"), F_OK) && errno == ENOENT);
	check(open("f", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT);
}

static void root(void)
{
	int fd;

	check(!mkdir(at("r"), 0755));
	close(make("r/f", O_RDONLY, 0644));
	check(!mkdir(at("r/d"), 0755) && !chroot(at("r")) && !chdir("/d"));
	moved();
	fd = open("/../f", O_RDONLY);
	check(fd >= 0 && holds(fd, 0, SIZE));
	check(!access("../f", F_OK) && access("/etc", F_OK));
}

/* A file below a bind mount of the host. */
static void bind_mount(void)
{
	int fd;

	check(!mkdir(at("d"), 0755) && !mkdir(at("bound"), 0755));
	check(!mount(at("d"), at("bound"), NULL, MS_BIND, NULL));
	fd = make("bound/f", O_RDWR, 0640);
	moved();
	check(holds(fd, 0, SIZE) && same(fd, open(at("bound/f"), O_RDONLY)));
	check(pwrite(fd, "x", 1, 0) == 1);
}

const struct kind dirs[] = {
	{ "dir", directory },
	{ "dir-position", directory_position },
	{ "dir-end", directory_end },
	{ "cwd", working_directory },
	{ "cwd-deleted", deleted_directory },
	{ "root", root },
	{ "bind-mount", bind_mount },
	{ NULL },
};
