/*
 * matrix DIR KIND...: runs each kind in a child, each in DIR/KIND. When all are
 * set up, DIR/ready holds a line for each kind that could not be. After SIGUSR1
 * every child checks itself; then DIR/result holds "KIND ok" or "KIND: what is
 * wrong", a line for each.
 */
#include "matrix.h"

static const struct kind *const all[] = { files, maps, dirs, names, sockets, locks, watches, tasks };
static const char *dir, *own; /* of all, and of the kind that this process is */
static int report;            /* pipe to the parent */
static bool is_moved;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

void wrong(const char *func, int line, const char *what)
{
	const char *why = strerror(errno);

	dprintf(report, "%s, line %d, %s the move: %s is not so (%s)", func, line, is_moved ? "after" : "before", what, why);
	_exit(1);
}

static void await(int sig)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	while (sigwaitinfo(&set, NULL) < 0)
		if (errno != EINTR)
			die("sigwaitinfo");
}

void moved(void)
{
	check(write(report, "R", 1) == 1);
	await(SIGUSR1);
	is_moved = true;
	errno = 0;
}

const char *at(const char *name)
{
	static char paths[8][1024];
	static int i;

	i = (i + 1) % 8;
	snprintf(paths[i], sizeof(paths[i]), "%s/%s/%s", dir, own, name);
	return paths[i];
}

int in_child(int (*f)(void))
{
	int status;
	pid_t pid = fork();

	check(pid >= 0);
	if (pid == 0)
		_exit(f());
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	return WEXITSTATUS(status);
}

static const struct kind *find(const char *name)
{
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		for (const struct kind *k = all[i]; k->name; k++)
			if (!strcmp(k->name, name))
				return k;
	fprintf(stderr, "matrix: no kind %s\n", name);
	exit(2);
}

struct child {
	const char *name;
	pid_t pid;
	int report;
	bool failed;
};

static void start(struct child *c, const char *name)
{
	const struct kind *k = find(name);
	int p[2];

	c->name = own = name;
	if (pipe2(p, O_CLOEXEC))
		die("pipe2");
	if (mkdir(at(""), 0755))
		die(name);
	c->pid = fork();
	if (c->pid < 0)
		die("fork");
	if (c->pid == 0) {
		report = p[1];
		close(p[0]);
		k->run();
		_exit(0);
	}
	close(p[1]);
	c->report = p[0];
}

/* Waits for the end of the child; what it said goes into out, as one line. */
static void finish(struct child *c, FILE *out)
{
	char text[4096];
	ssize_t n;
	int status = 0;
	pid_t pid;

	while ((pid = waitpid(c->pid, &status, 0)) < 0 && errno == EINTR)
		;
	c->failed = true;
	/* Not to the end: what the child has started may hold the pipe open. */
	if (fcntl(c->report, F_SETFL, O_NONBLOCK))
		die("fcntl");
	n = read(c->report, text, sizeof(text));
	if (n > 0)
		fprintf(out, "%s: %.*s\n", c->name, (int)n, text);
	else if (pid < 0)
		fprintf(out, "%s: lost: %s\n", c->name, strerror(errno));
	else if (status != 0)
		fprintf(out, "%s: ended with status %#x\n", c->name, status);
	else
		fprintf(out, "%s ok\n", c->name);
}

/* Gives a file its name when it is whole. */
static void publish(FILE *f, const char *tmp, const char *name)
{
	char from[1024], to[1024];

	snprintf(from, sizeof(from), "%s/%s", dir, tmp);
	snprintf(to, sizeof(to), "%s/%s", dir, name);
	if (fclose(f) || rename(from, to))
		die(name);
}

static FILE *create(const char *name)
{
	char path[1024];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "wex");
	if (!f)
		die(path);
	return f;
}

/* Lets go of whatever this process was started with. */
static void leave(void)
{
	int null;

	if (close_range(0, ~0U, 0) || chdir("/"))
		exit(3);
	null = open("/dev/null", O_RDWR);
	if (null != 0 || dup(null) != 1 || dup(null) != 2)
		exit(3);
	setsid();
}

int main(int argc, char **argv)
{
	struct child children[100];
	sigset_t set;
	FILE *f;
	int n = argc - 2;

	if (n < 1 || n > 100) {
		fprintf(stderr, "usage: matrix DIR KIND...\n");
		return 2;
	}
	dir = argv[1];
	for (int i = 0; i < n; i++)
		find(argv[i + 2]);
	umask(0);
	leave();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < n; i++)
		start(&children[i], argv[i + 2]);
	f = create("ready.new");
	for (int i = 0; i < n; i++) {
		char r;

		if (read(children[i].report, &r, 1) != 1)
			finish(&children[i], f);
		else if (r != 'R')
			finish(&children[i], f); /* it says what is wrong, but for the first letter */
		else
			children[i].failed = false;
	}
	publish(f, "ready.new", "ready");
	await(SIGUSR1);
	f = create("result.new");
	for (int i = 0; i < n; i++)
		if (!children[i].failed)
			kill(children[i].pid, SIGUSR1);
	for (int i = 0; i < n; i++)
		if (!children[i].failed)
			finish(&children[i], f);
	publish(f, "result.new", "result");
	for (;;) /* whoever looks ends it */
		pause();
}
