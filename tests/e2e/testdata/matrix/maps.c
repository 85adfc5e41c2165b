/* Mapped files. */
#include "matrix.h"

static unsigned char *map(int fd, int prot, int flags, size_t len, off_t off)
{
	void *p = mmap(NULL, len, prot, flags, fd, off);

	check(p != MAP_FAILED);
	return p;
}

static bool shows(const unsigned char *p, off_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != pattern(off + i))
			return false;
	return true;
}

static void map_shared(void)
{
	int fd = make("f", O_RDWR, 0660);
	unsigned char *p = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 4 * PAGE, PAGE);

	close(fd);
	p[0] = 'b';
	moved();
	check(p[0] == 'b' && shows(p + 1, PAGE + 1, 4 * PAGE - 1));
	p[PAGE] = 'a';
	check(!msync(p, 4 * PAGE, MS_SYNC));
	fd = open(at("f"), O_RDONLY);
	check(holds(fd, 0, PAGE) && !holds(fd, PAGE, 1) && !holds(fd, 2 * PAGE, 1));
	check(holds(fd, PAGE + 1, PAGE - 1) && holds(fd, 2 * PAGE + 1, SIZE - 2 * PAGE - 1));
}

/* Two mappings of one file still are of one file, and of what is written to it. */
static void map_shared_twice(void)
{
	int fd = make("f", O_RDWR, 0660);
	unsigned char *p = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, PAGE, 0);
	unsigned char *q = map(fd, PROT_READ, MAP_SHARED, PAGE, 0);

	moved();
	p[5] = '!';
	check(q[5] == '!');
	check(pwrite(fd, "?", 1, 6) == 1 && q[6] == '?');
}

static void map_private(void)
{
	int fd = make("f", O_RDONLY, 0444);
	unsigned char *p = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 4 * PAGE, PAGE);

	close(fd);
	p[0] = '!'; /* a page of its own; the others are the file's */
	moved();
	check(p[0] == '!' && shows(p + 1, PAGE + 1, 4 * PAGE - 1));
	p[PAGE] = '!';
	fd = open(at("f"), O_RDONLY);
	check(holds(fd, 0, SIZE));
}

static void map_read_only(void)
{
	int fd = make("f", O_RDONLY, 0444);
	unsigned char *p = map(fd, PROT_READ, MAP_SHARED, SIZE, 0);

	close(fd);
	moved();
	check(shows(p, 0, SIZE));
}

static void map_deleted(void)
{
	int fd = make("f", O_RDWR, 0660);
	unsigned char *p = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, SIZE, 0);
	unsigned char *q = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, SIZE, 0);

	close(fd);
	q[PAGE] = '!';
	check(!unlink(at("f")));
	moved();
	check(shows(p, 0, SIZE) && shows(q, 0, PAGE) && q[PAGE] == '!');
	p[3] = '!';
	check(q[3] == '!' && access(at("f"), F_OK));
}

/* Code of another file: f.so, as a library is mapped. */
static void map_code(void)
{
	static const unsigned char code[] = { 0xb8, 0x2a, 0, 0, 0, 0xc3 }; /* mov $42, %eax; ret */
	int fd = open(at("code"), O_CREAT | O_RDWR, 0755);
	int (*f)(void);

	check(fd >= 0 && write(fd, code, sizeof(code)) == sizeof(code) && !close(fd));
	fd = open(at("code"), O_RDONLY);
	*(void **)&f = map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE, PAGE, 0);
	close(fd);
	check(f() == 42);
	moved();
	check(f() == 42);
}

static void executable(void)
{
	char before[1024] = "", after[1024] = "", magic[4];
	int fd;

	check(readlink("/proc/self/exe", before, sizeof(before) - 1) > 0);
	moved();
	check(readlink("/proc/self/exe", after, sizeof(after) - 1) > 0 && !strcmp(before, after));
	fd = open("/proc/self/exe", O_RDONLY);
	check(fd >= 0 && read(fd, magic, 4) == 4 && !memcmp(magic, "\177ELF", 4));
	check(same(fd, open(before, O_RDONLY)));
	check(open(before, O_RDWR) < 0 && errno == ETXTBSY);
}

const struct kind maps[] = {
	{ "map-shared", map_shared },
	{ "map-twice", map_shared_twice },
	{ "map-private", map_private },
	{ "map-read", map_read_only },
	{ "map-deleted", map_deleted },
	{ "map-code", map_code },
	{ "executable", executable },
	{ NULL },
};
