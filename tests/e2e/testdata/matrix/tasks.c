/* Trees of processes, threads, sessions, and namespaces. */
#include "matrix.h"
#include <pthread.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/syscall.h>

static pthread_barrier_t done;
static int thread_fd;

static void *thread(void *arg)
{
	long i = (long)arg;
	pid_t tid = gettid(), *out = arg;
	sigset_t set;
	int sig;

	(void)i;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigwait(&set, &sig);
	*out = gettid() == tid && holds(thread_fd, 0, SIZE);
	pthread_barrier_wait(&done);
	return NULL;
}

static void threads(void)
{
	pthread_t t[4];
	pid_t good[4] = { 0 };

	thread_fd = make("f", O_RDONLY, 0444);
	check(!pthread_barrier_init(&done, NULL, 5));
	for (int i = 0; i < 4; i++)
		check(!pthread_create(&t[i], NULL, thread, &good[i]));
	moved();
	for (int i = 0; i < 4; i++)
		check(!pthread_kill(t[i], SIGUSR2));
	pthread_barrier_wait(&done);
	for (int i = 0; i < 4; i++)
		check(good[i]);
}

/* A child with a session of its own, a grandchild with a process group. */
static void sessions(void)
{
	pid_t ids[3], child, grand = 0, own = getpid();
	int down[2], up[2];
	char c;

	check(!pipe(down) && !pipe(up));
	child = fork();
	check(child >= 0);
	if (child == 0) {
		setsid();
		grand = fork();
		if (grand == 0)
			setpgid(0, 0);
		close(down[1]);
		check(read(down[0], &c, 1) == 0);
		ids[0] = getpid(), ids[1] = getpgrp(), ids[2] = getsid(0);
		check(write(up[1], ids, sizeof(ids)) == sizeof(ids));
		if (grand)
			check(waitpid(grand, NULL, 0) == grand);
		_exit(0);
	}
	close(down[0]);
	moved();
	check(getpid() == own && !close(down[1]));
	for (int i = 0; i < 2; i++) {
		check(read(up[0], ids, sizeof(ids)) == sizeof(ids));
		check(ids[2] == child && ids[1] == ids[0]);
	}
	check(waitpid(child, NULL, 0) == child);
}

static void zombie(void)
{
	int status;
	pid_t pid = fork();
	siginfo_t info;

	check(pid >= 0);
	if (pid == 0)
		_exit(42);
	check(!waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
	moved();
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

/* Files open in a child only, which has a umask and acts as another user (by its
 * fsuid: to dump a process of another user takes CAP_SYS_RESOURCE). */
static void other_user(void)
{
	int down[2], status;
	char c;
	pid_t pid;

	close(make("f", O_RDONLY, 0600));
	check(!pipe(down));
	pid = fork();
	check(pid >= 0);
	if (pid == 0) {
		int f;

		setfsgid(567);
		setfsuid(1234);
		umask(027);
		f = open(at("f"), O_RDWR);
		check(f >= 0 && !close(down[1]) && read(down[0], &c, 1) == 0);
		check(setfsuid(-1) == 1234 && holds(f, 0, SIZE) && pwrite(f, "x", 1, 0) == 1);
		check(open(at("g"), O_CREAT | O_WRONLY, 0666) < 0 && errno == EACCES);
		_exit(umask(0) == 027 ? 0 : 1);
	}
	moved();
	check(!close(down[1]) && waitpid(pid, &status, 0) == pid && status == 0);
}

/* A child in a mount namespace of its own, with a file on what it mounted. */
static void mount_namespace(void)
{
	int fd, bound;

	check(!mkdir(at("t"), 0755) && !mkdir(at("d"), 0755) && !mkdir(at("b"), 0755));
	check(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	check(!mount("t", at("t"), "tmpfs", 0, NULL) && !mount(at("d"), at("b"), NULL, MS_BIND, NULL));
	fd = make("t/f", O_RDWR, 0640);
	bound = make("b/f", O_RDWR, 0640);
	moved();
	check(holds(fd, 0, SIZE) && holds(bound, 0, SIZE));
	check(same(bound, open(at("b/f"), O_RDONLY)) && same(fd, open(at("t/f"), O_RDONLY)));
}

const struct kind tasks[] = {
	{ "threads", threads },
	{ "sessions", sessions },
	{ "zombie", zombie },
	{ "other-user", other_user },
	{ "mount-namespace", mount_namespace },
	{ NULL },
};
