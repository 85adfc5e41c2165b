/* inotify and fanotify. */
#include "matrix.h"
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>

/* The next event, of which there must be one. */
static struct inotify_event *next(int fd)
{
	static _Alignas(8) char b[1024];
	struct pollfd p = { .fd = fd, .events = POLLIN };

	check(poll(&p, 1, 10000) == 1 && read(fd, b, sizeof(b)) > 0);
	return (void *)b;
}

static void watched_directory(void)
{
	struct inotify_event *e;
	int wd, fd = inotify_init1(IN_NONBLOCK);

	check(fd >= 0 && !mkdir(at("d"), 0755));
	wd = inotify_add_watch(fd, at("d"), IN_CREATE);
	check(wd >= 0);
	moved();
	close(open(at("d/new"), O_CREAT | O_WRONLY, 0600));
	e = next(fd);
	check(e->wd == wd && e->mask == IN_CREATE && !strcmp(e->name, "new"));
}

static void watched_file(void)
{
	struct inotify_event *e;
	int wd, f = make("f", O_RDWR, 0644), fd = inotify_init1(IN_NONBLOCK);

	check(fd >= 0);
	wd = inotify_add_watch(fd, at("f"), IN_MODIFY | IN_DELETE_SELF);
	check(wd >= 0);
	moved();
	check(pwrite(f, "x", 1, 0) == 1);
	e = next(fd);
	check(e->wd == wd && e->mask == IN_MODIFY);
}

static void marked_file(void)
{
	struct fanotify_event_metadata m[8];
	struct pollfd p = { .events = POLLIN };
	int f, fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);

	check(fd >= 0);
	close(make("f", O_RDONLY, 0644));
	check(!fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, at("f")));
	moved();
	f = open(at("f"), O_RDONLY);
	check(f >= 0);
	p.fd = fd;
	check(poll(&p, 1, 10000) == 1 && read(fd, m, sizeof(m)) > 0);
	check((m[0].mask & FAN_OPEN) && holds(m[0].fd, 0, SIZE));
}

static void marked_mount(void)
{
	struct fanotify_event_metadata m[8];
	struct pollfd p = { .events = POLLIN };
	int f, fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);

	check(fd >= 0);
	close(make("f", O_RDONLY, 0644));
	check(!fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, at("f")));
	moved();
	f = open(at("f"), O_RDWR);
	check(f >= 0 && !close(f));
	p.fd = fd;
	check(poll(&p, 1, 10000) == 1 && read(fd, m, sizeof(m)) > 0);
}

const struct kind watches[] = {
	{ "inotify-dir", watched_directory },
	{ "inotify-file", watched_file },
	{ "fanotify", marked_file },
	{ "fanotify-mount", marked_mount },
	{ NULL },
};
