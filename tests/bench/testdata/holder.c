// Holds the files f00, f01, ... of a directory open, the middle of each at its offset, and
// does nothing until there is a FIFO to say something to: on the host that it is moved to.
//
//	holder DIR FILES BYTES
//
// Its first act there is to look at the clock and to say so. When it is told to, it reads
// BYTES of each file, and says when that is done, and what it read adds up to.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *say_to = "/run/bench.say", *hear_from = "/run/bench.hear";
static int say, hear;

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void tell(const char *what, long long a, unsigned long long b)
{
	char line[100];
	int n = snprintf(line, sizeof line, "%s %lld %llu\n", what, a, b);
	if (write(say, line, n) != n)
		exit(1);
}

static char told(void)
{
	char c;
	return read(hear, &c, 1) == 1 ? c : 0;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int files = atoi(argv[2]), fds[100];
	long long bytes = atoll(argv[3]);
	setsid();
	prctl(PR_SET_PDEATHSIG, 0);
	// What it was started with is another mount namespace's, which CRIU does not know.
	for (int fd = 0; fd < 100; fd++)
		close(fd);
	for (int fd = 0; fd < 3; fd++)
		if (open("/dev/null", O_RDWR) != fd)
			return 1;
	for (int i = 0; i < files; i++) {
		char path[4096];
		struct stat st;
		snprintf(path, sizeof path, "%s/f%02d", argv[1], i);
		if ((fds[i] = open(path, O_RDONLY)) < 0 || fstat(fds[i], &st) < 0 || lseek(fds[i], st.st_size / 2, SEEK_SET) < 0)
			return 1;
	}
	int ready = creat("/srv/job/ready", 0644);
	if (ready < 0 || close(ready) < 0)
		return 1;

	long long first;
	do {
		struct timespec ms = {0, 1000000};
		nanosleep(&ms, NULL);
		first = now();
	} while ((say = open(say_to, O_WRONLY)) < 0);
	tell("first", first, 0);
	if ((hear = open(hear_from, O_RDONLY)) < 0)
		return 1;
	int ask = told() == 'a'; // before each file

	uint64_t sum = 14695981039346656037u; // FNV-1a
	static unsigned char b[64 << 10];
	for (int i = 0; i < files; i++) {
		if (ask) {
			tell("want", i, 0);
			told();
		}
		for (long long left = bytes; left > 0;) {
			ssize_t n = read(fds[i], b, left < (long long)sizeof b ? left : (long long)sizeof b);
			if (n <= 0)
				return 1;
			for (ssize_t k = 0; k < n; k++)
				sum = (sum ^ b[k]) * 1099511628211u;
			left -= n;
		}
	}
	tell("read", now(), sum);
	for (;;)
		pause();
}
