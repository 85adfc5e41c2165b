/*
 * The process that restore_test.go moves: it holds a file in every way that a
 * process can, checks each step that all of them are as the step before left
 * them, and says so in its log. Where it stands is kept by the kernel only: in
 * file offsets, mappings and memory.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

static int log_fd;

static void fail(unsigned long step, const char *what)
{
	char line[200];
	int n = snprintf(line, sizeof(line), "%lu WRONG: %s\n", step, what);

	if (write(log_fd, line, n) != n)
		_exit(2);
	_exit(1);
}

static int must_open(const char *name, int flags)
{
	int fd = open(name, flags);

	if (fd < 0)
		_exit(3);
	return fd;
}

static unsigned long *must_map(const char *name, int flags, int prot, int how)
{
	int fd = must_open(name, flags);
	void *p = mmap(NULL, 4 * PAGE, prot, how, fd, 0);

	if (p == MAP_FAILED)
		_exit(4);
	close(fd);
	return p;
}

int main(int argc, char **argv)
{
	unsigned long step, n, *shared, *private;
	char line[50], cwd[4096], want[4096];
	int in, rw;

	/* CRIU knows the mounts of this host only: nothing from outside stays open. */
	close_range(0, ~0U, 0);
	for (n = 0; n < 3; n++)
		must_open("/dev/null", O_RDWR);
	if (setsid() < 0 && getsid(0) != getpid())
		return 6;
	if (argc != 2 || chdir(argv[1]) || !getcwd(want, sizeof(want)))
		return 5;
	in = must_open("read-only", O_RDONLY);
	must_open("never-read", O_RDONLY);
	log_fd = must_open("log", O_WRONLY | O_APPEND);
	rw = must_open("read-write", O_RDWR);
	shared = must_map("shared", O_RDWR, PROT_READ | PROT_WRITE, MAP_SHARED);
	private = must_map("private", O_RDONLY, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	for (step = 1;; step++) {
		/* One number a step, at the offset where the last read ended. */
		if (read(in, &n, sizeof(n)) != sizeof(n) || n != step)
			fail(step, "read-only");

		/* Each step's number is written behind those of the others. */
		if (step > 1 && (pread(rw, &n, sizeof(n), (step - 2) * sizeof(n)) != sizeof(n) || n != step - 1))
			fail(step, "read-write: the last step");
		if (write(rw, &step, sizeof(step)) != sizeof(step))
			fail(step, "read-write");
		if (pread(rw, &n, sizeof(n), 65536 - sizeof(n)) != sizeof(n) || n != 4242)
			fail(step, "read-write: its end");

		if (shared[0] != step - 1 || shared[PAGE / sizeof(n)] != 4242)
			fail(step, "shared");
		shared[0] = step;

		/* Its first page is this process's own, the last is the file's. */
		if (private[0] != step - 1 || private[3 * PAGE / sizeof(n)] != 4242)
			fail(step, "private");
		private[0] = step;

		if (!getcwd(cwd, sizeof(cwd)) || strcmp(cwd, want))
			fail(step, "working directory");

		n = snprintf(line, sizeof(line), "%lu ok\n", step);
		if (write(log_fd, line, n) != (ssize_t)n)
			fail(step, "log");
		usleep(20000);
	}
}
