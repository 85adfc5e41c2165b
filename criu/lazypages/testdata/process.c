/*
 * A process as CRIU leaves it: with memory that is registered with a userfaultfd, and not there.
 *
 *	process SOCKET ROLE
 *
 * It hands the descriptor over at SOCKET as CRIU does, plays its role and says what is wrong: nothing, and
 * ends with 0. Each word of the memory has a content of its own (word).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 1024UL /* as in server_test.go */
#define BASE ((char *)0x10000000000)

static uint64_t word(unsigned long page, int i) { return (page * 512 + i + 1) * 0x9e3779b97f4a7c15UL; }

/* has fails unless the page at p is page n of the memory; zeros if n is negative. */
static void has(const char *p, long n)
{
	for (int i = 0; i < 512; i++) {
		uint64_t is = ((volatile const uint64_t *)p)[i], want = n < 0 ? 0 : word(n, i);

		if (is != want) {
			printf("page %ld at %p has %#lx, not %#lx\n", n, p, is, want);
			exit(1);
		}
	}
}

static void all(unsigned long from, unsigned long end)
{
	for (unsigned long n = from; n < end; n++)
		has(BASE + n * PAGE, n);
}

static void zeros(unsigned long from, unsigned long end)
{
	for (unsigned long n = from; n < end; n++)
		has(BASE + n * PAGE, -1);
}

static void must(int ok, const char *what)
{
	if (!ok) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void ended(pid_t pid)
{
	int status;

	must(waitpid(pid, &status, 0) == pid, "wait");
	if (status) {
		printf("a child ended with %#x\n", status);
		exit(1);
	}
}

/* hand gives the memory to who listens at path. */
static void hand(const char *path)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
					     UFFD_FEATURE_EVENT_UNMAP};
	struct uffdio_register reg = {.range = {(uintptr_t)BASE, PAGES * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), s = socket(AF_UNIX, SOCK_STREAM, 0);
	uint32_t pid = 1, finished = 0x52535446;
	char b = 0, control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec one = {&b, 1};
	struct msghdr msg = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	must(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0, "userfaultfd");
	must(mmap(BASE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == BASE, "mmap");
	must(ioctl(fd, UFFDIO_REGISTER, &reg) == 0, "register");
	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
	must(s >= 0 && connect(s, (void *)&addr, sizeof addr) == 0, "connect");
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	must(write(s, &pid, sizeof pid) == sizeof pid && sendmsg(s, &msg, 0) == 1, "hand over");
	close(fd);
	must(write(s, &finished, sizeof finished) == sizeof finished, "finish");
	close(s);
}

/* go waits until the test says so. */
static void go(void)
{
	char c;

	must(read(0, &c, 1) == 1, "go");
}

/* A child's memory that is wiped by fork is empty, and its parent's is not. */
static void wiped(void)
{
	must(madvise(BASE + PAGES / 2 * PAGE, PAGES / 4 * PAGE, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			zeros(PAGES / 2, PAGES / 4 * 3);
			all(0, PAGES / 2);
			all(PAGES / 4 * 3, PAGES);
			exit(0);
		}
		ended(pid);
	}
	all(0, PAGES);
}

/* A child that does not have all of the memory. */
static void unforked(void)
{
	must(madvise(BASE + PAGES / 4 * PAGE, PAGES / 2 * PAGE, MADV_DONTFORK) == 0, "MADV_DONTFORK");
	pid_t pid = fork();

	if (pid == 0) {
		all(0, PAGES / 4);
		all(PAGES / 4 * 3, PAGES);
		exit(0);
	}
	all(0, PAGES);
	ended(pid);
}

/* What was moved is there and, where it came from, nothing. */
static void moved(void)
{
	char *to = BASE + 2 * PAGES * PAGE, *grown;

	must(mremap(BASE, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to, "MREMAP_DONTUNMAP");
	zeros(0, 16);
	for (long n = 0; n < 16; n++)
		has(to + n * PAGE, n);
	/* smaller, and larger */
	to += 32 * PAGE;
	must(mremap(BASE + 16 * PAGE, 16 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "to less");
	for (long n = 0; n < 8; n++)
		has(to + n * PAGE, 16 + n);
	grown = mremap(to, 8 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
	must(grown != MAP_FAILED, "to more");
	for (long n = 0; n < 64; n++)
		has(grown + n * PAGE, n < 8 ? 16 + n : -1);
	/* in place of what is missing, too */
	must(mremap(BASE + 32 * PAGE, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 64 * PAGE) == BASE + 64 * PAGE, "over");
	for (long n = 0; n < 16; n++)
		has(BASE + (64 + n) * PAGE, 32 + n);
	/* and again, when something came by another way */
	must(mmap(BASE + 100 * PAGE, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == BASE + 100 * PAGE, "anew");
	zeros(100, 108);
	all(80, 100);
	all(108, PAGES);
}

/* What was given back is empty. */
static void freed(void)
{
	must(madvise(BASE, 16 * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	zeros(0, 16);
	must(madvise(BASE + 16 * PAGE, 16 * PAGE, MADV_FREE) == 0, "MADV_FREE");
	for (long n = 16; n < 32; n++) /* the one or the other */
		has(BASE + n * PAGE, *(volatile uint64_t *)(BASE + n * PAGE) ? n : -1);
	must(madvise(BASE + 32 * PAGE, 512 * PAGE, MADV_HUGEPAGE) == 0, "MADV_HUGEPAGE");
	must(madvise(BASE + 32 * PAGE, 512 * PAGE, 22 /* MADV_POPULATE_READ */) == 0, "MADV_POPULATE_READ");
	all(32, PAGES);
}

static pthread_barrier_t together;

static void *touch(void *arg)
{
	unsigned long from = (uintptr_t)arg;

	pthread_barrier_wait(&together);
	for (unsigned long n = 0; n < PAGES; n++)
		has(BASE + (from + n) % PAGES * PAGE, (from + n) % PAGES);
	return NULL;
}

/* Many threads at once, at the same page and all over. */
static void threads(void)
{
	pthread_t t[48];

	pthread_barrier_init(&together, NULL, 48);
	for (int i = 0; i < 48; i++)
		must(pthread_create(&t[i], NULL, touch, (void *)(uintptr_t)(i % 3 ? 0 : i * 20)) == 0, "thread");
	for (int i = 0; i < 48; i++)
		pthread_join(t[i], NULL);
}

/* The kernel reads and writes what is missing, and so does another process: there it is an error at worst. */
static void calls(void)
{
	static char page[PAGE];
	char *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec here = {own, PAGE};
	int p[2], parent = getpid();

	must(pipe(p) == 0 && write(p[1], BASE + 5 * PAGE, PAGE) == (ssize_t)PAGE && read(p[0], page, PAGE) == (ssize_t)PAGE, "write");
	has(page, 5);
	must(write(p[1], page, 8) == 8 && read(p[0], BASE + 6 * PAGE + 8, 8) == 8, "read");
	must(*(uint64_t *)(BASE + 6 * PAGE) == word(6, 0) && *(uint64_t *)(BASE + 6 * PAGE + 8) == word(5, 0), "what read(2) wrote");
	pid_t pid = fork();

	if (pid == 0) {
		for (long n = 7; n < 200; n += 3) {
			struct iovec there = {BASE + n * PAGE, PAGE};
			ssize_t got = process_vm_readv(parent, &here, 1, &there, 1, 0);

			if (got == (ssize_t)PAGE)
				has(own, n);
			else
				must(got < 0 && errno == EFAULT, "process_vm_readv");
		}
		exit(0);
	}
	ended(pid);
	all(7, PAGES);
}

/* Children that have ended; when all have, the test is told, and says when to go on. */
static void forks(void)
{
	for (int i = 0; i < 200; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		ended(pid);
	}
	puts("forked");
	fflush(stdout);
	go();
	all(0, PAGES);
}

/* Its memory page by page, when the test says so. */
static void steps(void)
{
	for (unsigned long n = 0; n < PAGES; n += PAGES / 4) {
		go();
		has(BASE + n * PAGE, n);
		puts("step");
		fflush(stdout);
	}
	all(0, PAGES);
}

int main(int argc, char **argv)
{
	struct {
		const char *name;
		void (*play)(void);
	} roles[] = {{"wiped", wiped}, {"unforked", unforked}, {"moved", moved}, {"freed", freed},
		     {"threads", threads}, {"calls", calls}, {"forks", forks}, {"steps", steps}};

	if (argc != 3)
		return 2;
	hand(argv[1]);
	for (unsigned i = 0; i < sizeof roles / sizeof roles[0]; i++)
		if (strcmp(roles[i].name, argv[2]) == 0) {
			roles[i].play();
			return 0;
		}
	return 2;
}
