/* Open regular files. */
#include "matrix.h"

unsigned char pattern(off_t off)
{
	return (off * 7 + off / 251) & 0xff;
}

int make(const char *name, int flags, mode_t mode)
{
	static unsigned char data[SIZE];
	int fd = open(at(name), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	check(fd >= 0);
	for (int i = 0; i < SIZE; i++)
		data[i] = pattern(i);
	check(write(fd, data, SIZE) == SIZE);
	check(!fchown(fd, 1234, 567) && !fchmod(fd, mode) && !close(fd));
	fd = open(at(name), flags);
	check(fd >= 0);
	return fd;
}

bool holds(int fd, off_t off, size_t len)
{
	unsigned char b[PAGE];

	while (len > 0) {
		ssize_t n = pread(fd, b, len < PAGE ? len : PAGE, off);

		if (n <= 0)
			return false;
		for (int i = 0; i < n; i++)
			if (b[i] != pattern(off + i))
				return false;
		off += n;
		len -= n;
	}
	return true;
}

bool same(int a, int b)
{
	struct stat x, y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Whether fd is as make() left it, but for its content. */
static bool is(int fd, int flags, mode_t mode, off_t size)
{
	struct stat st;

	return !fstat(fd, &st) && st.st_mode == (S_IFREG | mode) && st.st_size == size && st.st_uid == 1234 &&
		st.st_gid == 567 && (fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND)) == flags;
}

static void read_at_offset(void)
{
	char b[100];
	int fd = make("f", O_RDONLY, 0440);

	check(lseek(fd, 54321, SEEK_SET) == 54321);
	moved();
	check(is(fd, O_RDONLY, 0440, SIZE));
	check(lseek(fd, 0, SEEK_CUR) == 54321);
	check(read(fd, b, 100) == 100 && b[0] == (char)pattern(54321) && b[99] == (char)pattern(54420));
	check(holds(fd, 0, SIZE));
	check(same(fd, open(at("f"), O_RDONLY)));
}

static void write_at_offset(void)
{
	char b[5];
	int again, fd = make("f", O_WRONLY, 0620);

	check(lseek(fd, 54321, SEEK_SET) == 54321);
	moved();
	check(is(fd, O_WRONLY, 0620, SIZE));
	check(write(fd, "moved", 5) == 5 && lseek(fd, 0, SEEK_CUR) == 54326);
	again = open(at("f"), O_RDONLY);
	check(same(fd, again) && holds(again, 0, 54321) && holds(again, 54326, SIZE - 54326));
	check(pread(again, b, 5, 54321) == 5 && !memcmp(b, "moved", 5));
}

static void append(void)
{
	char b[10];
	int again, fd = make("f", O_WRONLY | O_APPEND, 0622);

	check(write(fd, "first", 5) == 5);
	moved();
	check(is(fd, O_WRONLY | O_APPEND, 0622, SIZE + 5));
	check(write(fd, "again", 5) == 5);
	again = open(at("f"), O_RDONLY);
	check(same(fd, again) && holds(again, 0, SIZE));
	check(pread(again, b, 10, SIZE) == 10 && !memcmp(b, "firstagain", 10));
	check(lseek(again, 0, SEEK_END) == SIZE + 10);
}

static void read_write(void)
{
	unsigned char b[2];
	int fd = make("f", O_RDWR, 0660);

	check(pwrite(fd, "before", 6, 70000) == 6);
	moved();
	check(is(fd, O_RDWR, 0660, SIZE));
	check(pwrite(fd, "x", 1, 70000) == 1);
	check(holds(fd, 0, 70000) && holds(fd, 70006, SIZE - 70006));
	check(pread(fd, b, 2, 70000) == 2 && b[0] == 'x' && b[1] == 'e');
	check(!ftruncate(fd, 10) && holds(fd, 0, 10) && lseek(fd, 0, SEEK_END) == 10);
}

static int shared_fd;

static int seek_on(void)
{
	return lseek(shared_fd, 100, SEEK_CUR) == 600 ? 0 : 1;
}

/* Descriptors that share an offset, in two processes, still share it. */
static void shared_offset(void)
{
	int p[2], two;
	char c;
	pid_t pid;

	shared_fd = make("f", O_RDONLY, 0644);
	two = dup(shared_fd);
	check(two >= 0 && !pipe(p));
	pid = fork();
	check(pid >= 0);
	if (pid == 0) {
		close(p[1]);
		check(read(p[0], &c, 1) == 0); /* until the parent has looked */
		_exit(seek_on());
	}
	close(p[0]);
	check(lseek(shared_fd, 400, SEEK_SET) == 400);
	moved();
	check(lseek(two, 100, SEEK_CUR) == 500 && !close(p[1]));
	check(waitpid(pid, NULL, 0) == pid);
	check(lseek(shared_fd, 0, SEEK_CUR) == 600);
}

/* Opened, deleted: a ghost file. */
static void deleted(void)
{
	struct stat st;
	int fd = make("f", O_RDWR, 0640);

	check(lseek(fd, 123, SEEK_SET) == 123 && !unlink(at("f")));
	moved();
	check(is(fd, O_RDWR, 0640, SIZE) && holds(fd, 0, SIZE) && lseek(fd, 0, SEEK_CUR) == 123);
	check(!fstat(fd, &st) && st.st_nlink == 0);
	check(access(at("f"), F_OK) && errno == ENOENT);
	check(write(fd, "x", 1) == 1 && holds(fd, 0, 123) && holds(fd, 124, 1000));
}

static void deleted_and_made_anew(void)
{
	int anew, fd = make("f", O_RDWR, 0640);

	check(!unlink(at("f")));
	anew = open(at("f"), O_CREAT | O_EXCL | O_RDWR, 0600);
	check(anew >= 0 && write(anew, "another", 7) == 7);
	moved();
	check(holds(fd, 0, SIZE) && lseek(anew, 0, SEEK_END) == 7 && !same(fd, anew));
	check(same(anew, open(at("f"), O_RDONLY)));
}

/* Never had a name. */
static void nameless(void)
{
	int fd = open(at(""), O_TMPFILE | O_RDWR, 0600);

	check(fd >= 0 && write(fd, "nameless", 8) == 8);
	moved();
	check(lseek(fd, 0, SEEK_CUR) == 8 && lseek(fd, 0, SEEK_END) == 8);
}

/* The name it was opened by is gone, another one is left: a link remap. */
static void other_name_left(void)
{
	struct stat st;
	int other, fd = make("f", O_RDWR, 0640);

	check(!link(at("f"), at("other")) && !unlink(at("f")));
	moved();
	check(holds(fd, 0, SIZE) && access(at("f"), F_OK) && errno == ENOENT);
	other = open(at("other"), O_RDONLY);
	check(other >= 0);
	check(same(fd, other));
	check(!fstat(fd, &st) && st.st_nlink == 1);
	check(pwrite(fd, "x", 1, 0) == 1);
	check(holds(other, 1, SIZE - 1) && !holds(other, 0, 1));
}

static void two_names(void)
{
	struct stat st;
	int b, a = make("a", O_RDWR, 0640);

	check(!link(at("a"), at("b")));
	b = open(at("b"), O_RDWR);
	check(b >= 0);
	moved();
	check(holds(a, 0, SIZE) && holds(b, 0, SIZE));
	check(same(a, b));
	check(!fstat(a, &st) && st.st_nlink == 2);
	check(pwrite(a, "x", 1, 0) == 1 && !holds(b, 0, 1) && holds(b, 1, 100));
}

/* Its directory has another name than when it was opened. */
static void renamed_directory(void)
{
	int fd;

	check(!mkdir(at("old"), 0755));
	fd = make("old/f", O_RDWR, 0640);
	check(!rename(at("old"), at("new")));
	moved();
	check(holds(fd, 0, SIZE) && same(fd, open(at("new/f"), O_RDONLY)));
}

static void strange_name(void)
{
	int fd = make("a name\nwith \xff, \\ and \"bytes\" ", O_RDWR, 0640);

	moved();
	check(holds(fd, 0, SIZE));
}

static void empty(void)
{
	int fd = open(at("f"), O_CREAT | O_RDWR, 0600);

	check(fd >= 0);
	moved();
	check(lseek(fd, 0, SEEK_END) == 0 && write(fd, "x", 1) == 1);
}

/* 64 MiB, of which little is there. */
static void sparse(void)
{
	struct stat st;
	unsigned char b[2];
	int fd = make("f", O_RDWR, 0640);

	check(pwrite(fd, "end", 3, 64 << 20) == 3);
	moved();
	check(!fstat(fd, &st) && st.st_size == (64 << 20) + 3);
	check(holds(fd, 0, SIZE) && pread(fd, b, 2, 64 << 20) == 2 && b[1] == 'n');
	check(pread(fd, b, 2, 40 << 20) == 2 && b[0] == 0);
}

static void memory(void)
{
	char b[5];
	char *p;
	int fd = memfd_create("matrix", MFD_ALLOW_SEALING);

	check(fd >= 0 && write(fd, "memfd", 5) == 5 && !fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
	p = mmap(NULL, 5, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(p != MAP_FAILED);
	moved();
	check(lseek(fd, 0, SEEK_CUR) == 5 && fcntl(fd, F_GET_SEALS) == F_SEAL_GROW);
	p[0] = 'M';
	check(pread(fd, b, 5, 0) == 5 && !memcmp(b, "Memfd", 5));
}

const struct kind files[] = {
	{ "read", read_at_offset },
	{ "write", write_at_offset },
	{ "append", append },
	{ "read-write", read_write },
	{ "shared-offset", shared_offset },
	{ "deleted", deleted },
	{ "deleted-anew", deleted_and_made_anew },
	{ "nameless", nameless },
	{ "link-remap", other_name_left },
	{ "two-names", two_names },
	{ "renamed-dir", renamed_directory },
	{ "strange-name", strange_name },
	{ "empty", empty },
	{ "sparse", sparse },
	{ "memfd", memory },
	{ NULL },
};
