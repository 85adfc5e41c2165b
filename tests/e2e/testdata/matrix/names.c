/* What has a name and no content: FIFOs, devices, O_PATH, terminals. */
#include "matrix.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

static void fifo(void)
{
	char b[10];
	int r, w;

	check(!mkfifo(at("fifo"), 0620));
	r = open(at("fifo"), O_RDONLY | O_NONBLOCK);
	w = open(at("fifo"), O_WRONLY);
	check(r >= 0 && w >= 0 && write(w, "inside", 6) == 6);
	moved();
	check(read(r, b, 10) == 6 && !memcmp(b, "inside", 6));
	check(write(w, "more", 4) == 4 && read(r, b, 10) == 4 && !memcmp(b, "more", 4));
	w = open(at("fifo"), O_WRONLY | O_NONBLOCK); /* it is the same one by name */
	check(w >= 0 && write(w, "name", 4) == 4 && read(r, b, 10) == 4);
}

static void device(void)
{
	char b[10] = "xxxxxxxxx";
	int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_RDWR);

	check(zero >= 0 && null >= 0);
	moved();
	check(read(zero, b, 10) == 10 && b[0] == 0 && b[9] == 0);
	check(write(null, b, 10) == 10 && read(null, b, 10) == 0);
}

static void path_only(void)
{
	char proc[40];
	int fd, dir, file;

	check(!mkdir(at("d"), 0755));
	close(make("d/f", O_RDONLY, 0644));
	dir = open(at("d"), O_PATH | O_DIRECTORY);
	file = open(at("d/f"), O_PATH);
	check(dir >= 0 && file >= 0);
	moved();
	fd = openat(dir, "f", O_RDONLY);
	check(fd >= 0 && holds(fd, 0, SIZE) && same(fd, file));
	check((fcntl(file, F_GETFL) & O_PATH) && read(file, proc, 1) < 0 && errno == EBADF);
	sprintf(proc, "/proc/self/fd/%d", file);
	check(holds(open(proc, O_RDONLY), 0, SIZE));
}

static void path_of_symlink(void)
{
	char b[10];
	int fd;

	check(!symlink("target", at("l")));
	fd = open(at("l"), O_PATH | O_NOFOLLOW);
	check(fd >= 0);
	moved();
	check(readlinkat(fd, "", b, 10) == 6 && !memcmp(b, "target", 6));
}

/* A terminal and the session on it, as a terminal multiplexer has them. */
static void terminal(void)
{
	struct winsize size = { .ws_row = 33, .ws_col = 77 }, now = { 0 };
	char b[100] = "";
	int master;
	ssize_t n;
	pid_t pid = forkpty(&master, NULL, NULL, &size);

	check(pid >= 0);
	if (pid == 0) {
		if (tcgetsid(0) != getpid())
			_exit(1);
		while ((n = read(0, b, sizeof(b))) > 0) /* a line at a time */
			dprintf(1, "you said %.*s", (int)n, b);
		_exit(0);
	}
	moved();
	check(!ioctl(master, TIOCGWINSZ, &now) && now.ws_row == 33 && now.ws_col == 77);
	check(write(master, "hello\n", 6) == 6);
	for (size_t len = 0; !strstr(b, "you said hello"); len += n) {
		check(len < sizeof(b) - 1);
		n = read(master, b + len, sizeof(b) - 1 - len);
		check(n > 0);
	}
	check(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid);
}

const struct kind names[] = {
	{ "fifo", fifo },
	{ "device", device },
	{ "path", path_only },
	{ "path-symlink", path_of_symlink },
	{ "tty", terminal },
	{ NULL },
};
