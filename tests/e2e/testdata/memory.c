/*
 * The process that restore_pages_test.go moves: it has 64 MiB of memory of which it knows
 * every byte, and says in its log, step by step, that a part of it is as it should be. Threads
 * and, once there is a file "children", children that it forks look as well, at any page, and say
 * only what is wrong. In a part of it mappings are moved, split, emptied and given back, as malloc does that.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define STILL (12288UL) /* pages that stay where they are */
#define CHUNK 16	/* pages that are moved together */
#define CHUNKS 256
#define CHILDREN 4

enum { FULL, EMPTY, GONE };

static int log_fd;
static unsigned char *still;	       /* STILL pages */
static unsigned char *area;	       /* where chunks go that are moved */
static unsigned char *where[CHUNKS];
static unsigned char what[CHUNKS];

static void fail(const char *who, unsigned long page, unsigned long has, unsigned long want)
{
	char line[200];
	int n = snprintf(line, sizeof(line), "WRONG: %s: page %lu has %#lx, not %#lx\n", who, page, has, want);

	if (write(log_fd, line, n) != n)
		_exit(2);
	_exit(1);
}

static uint64_t word(unsigned long page, int i) { return (page * 512 + i + 1) * 0x9e3779b97f4a7c15UL; }

static void fill(unsigned char *p, unsigned long page)
{
	for (int i = 0; i < 512; i++)
		((uint64_t *)p)[i] = word(page, i);
}

static void check(const char *who, volatile uint64_t *p, unsigned long page, int empty)
{
	for (int i = 0; i < 512; i++) {
		uint64_t has = p[i], want = empty ? 0 : word(page, i);

		if (has != want)
			fail(who, page, has, want);
	}
}

static void check_chunk(const char *who, int c)
{
	for (int i = 0; what[c] != GONE && i < CHUNK; i++)
		check(who, (void *)(where[c] + i * PAGE), STILL + c * CHUNK + i, what[c] == EMPTY);
}

static unsigned long pick(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void *look(void *arg)
{
	uint64_t seed = 1000 + (uintptr_t)arg;

	for (;;) {
		unsigned long n = pick(&seed) % STILL;

		check("thread", (void *)(still + n * PAGE), n, 0);
		usleep(100);
	}
	return NULL;
}

static void child(uint64_t seed)
{
	for (int i = 0; i < 400; i++) {
		unsigned long n = pick(&seed) % STILL;

		check("child", (void *)(still + n * PAGE), n, 0);
		check_chunk("child", pick(&seed) % CHUNKS);
		usleep(200);
	}
	_exit(0);
}

/* change does something to a chunk that only the kernel and the main thread know of. */
static void change(unsigned long step, uint64_t *seed)
{
	int c = pick(seed) % CHUNKS;
	unsigned char *to = area + c * CHUNK * PAGE;

	if (what[c] == GONE)
		return;
	switch (step % 5) {
	case 0:
		if (where[c] != to && mremap(where[c], CHUNK * PAGE, CHUNK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
			_exit(5);
		where[c] = to;
		break;
	case 1: /* two mappings where there was one */
		if (mprotect(where[c] + CHUNK / 2 * PAGE, PAGE, PROT_READ) || mprotect(where[c] + CHUNK / 2 * PAGE, PAGE, PROT_READ | PROT_WRITE))
			_exit(6);
		mprotect(where[c], PAGE, PROT_READ);
		mprotect(where[c], PAGE, PROT_READ | PROT_WRITE);
		break;
	case 2:
		if (madvise(where[c], CHUNK * PAGE, MADV_DONTNEED))
			_exit(7);
		what[c] = EMPTY;
		break;
	case 3:
		if (step % 4 == 0) {
			if (munmap(where[c], CHUNK * PAGE))
				_exit(8);
			what[c] = GONE;
		}
		break;
	case 4: /* written as a whole, or only in a part, in pages that may not be here */
		where[c][PAGE + 8] ^= 1;
		where[c][PAGE + 8] ^= 1;
		for (int i = 0; what[c] == EMPTY && i < CHUNK; i++)
			fill(where[c] + i * PAGE, STILL + c * CHUNK + i);
		what[c] = FULL;
	}
	check_chunk("change", c);
}

int main(int argc, char **argv)
{
	uint64_t seed = 42;
	int children = 0;
	pthread_t t;

	close_range(0, ~0U, 0);
	for (int n = 0; n < 3; n++)
		if (open("/dev/null", O_RDWR) < 0)
			return 3;
	if (setsid() < 0 && getsid(0) != getpid())
		return 6;
	if (argc < 2 || chdir(argv[1]) || (log_fd = open("log", O_WRONLY | O_APPEND | O_CREAT, 0644)) < 0)
		return 3;
	still = mmap(NULL, STILL * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	where[0] = mmap(NULL, CHUNKS * CHUNK * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	area = mmap(NULL, CHUNKS * CHUNK * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (still == MAP_FAILED || where[0] == MAP_FAILED || area == MAP_FAILED)
		return 4;
	for (unsigned long n = 0; n < STILL; n++)
		fill(still + n * PAGE, n);
	for (int c = 0; c < CHUNKS; c++) {
		where[c] = where[0] + c * CHUNK * PAGE;
		for (int i = 0; i < CHUNK; i++)
			fill(where[c] + i * PAGE, STILL + c * CHUNK + i);
	}
	for (uintptr_t n = 0; n < 2; n++)
		if (pthread_create(&t, NULL, look, (void *)n))
			return 5;
	for (unsigned long step = 1;; step++) {
		char line[50];
		int n;

		change(step, &seed);
		if (step % 4 == 0 && children < CHILDREN && access("children", F_OK) == 0) {
			pid_t pid = fork();

			if (pid == 0)
				child(step + 7);
			if (pid < 0)
				return 9;
			children++;
		}
		while (children > 0 && waitpid(-1, &n, WNOHANG) > 0) {
			if (n != 0)
				fail("a child ended with", n, 0, 0);
			children--;
		}
		n = snprintf(line, sizeof(line), "%lu ok\n", step);
		if (write(log_fd, line, n) != n)
			return 2;
		usleep(10000);
	}
}
