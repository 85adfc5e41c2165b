/* Unix sockets with names. */
#include "matrix.h"
#include <poll.h>

static int unix_socket(int type)
{
	int fd = socket(AF_UNIX, type, 0);

	check(fd >= 0);
	return fd;
}

static struct sockaddr_un address(const char *name)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };

	check(strlen(at(name)) < sizeof(sun.sun_path));
	strcpy(sun.sun_path, at(name));
	return sun;
}

/* Bound and listening: who connects by its name comes through. */
static void listening(void)
{
	struct sockaddr_un sun = address("s");
	int c, s, l = unix_socket(SOCK_STREAM);
	struct stat st;
	char b[3];

	check(!bind(l, (void *)&sun, sizeof(sun)) && !listen(l, 5) && !chmod(at("s"), 0660) && !chown(at("s"), 12, 34));
	moved();
	check(!lstat(at("s"), &st) && S_ISSOCK(st.st_mode) && (st.st_mode & 0777) == 0660 && st.st_uid == 12 && st.st_gid == 34);
	c = unix_socket(SOCK_STREAM);
	check(!connect(c, (void *)&sun, sizeof(sun)));
	s = accept(l, NULL, NULL);
	check(s >= 0 && write(c, "abc", 3) == 3 && read(s, b, 3) == 3 && !memcmp(b, "abc", 3));
}

/* Connected through a name, with data under way. */
static void connected(void)
{
	struct sockaddr_un sun = address("s");
	int c, s, l = unix_socket(SOCK_STREAM);
	char b[10];

	check(!bind(l, (void *)&sun, sizeof(sun)) && !listen(l, 5));
	c = unix_socket(SOCK_STREAM);
	check(!connect(c, (void *)&sun, sizeof(sun)));
	s = accept(l, NULL, NULL);
	check(s >= 0 && write(c, "before", 6) == 6);
	moved();
	check(read(s, b, 10) == 6 && !memcmp(b, "before", 6));
	check(write(s, "back", 4) == 4 && read(c, b, 10) == 4);
}

static void datagrams(void)
{
	struct sockaddr_un sun = address("s");
	int c, s = unix_socket(SOCK_DGRAM);
	char b[10];

	check(!bind(s, (void *)&sun, sizeof(sun)));
	c = unix_socket(SOCK_DGRAM);
	check(!connect(c, (void *)&sun, sizeof(sun)) && send(c, "one", 3, 0) == 3);
	moved();
	check(recv(s, b, 10, MSG_DONTWAIT) == 3 && !memcmp(b, "one", 3));
	check(send(c, "two!", 4, 0) == 4 && recv(s, b, 10, MSG_DONTWAIT) == 4);
	c = unix_socket(SOCK_DGRAM);
	check(sendto(c, "by name", 7, 0, (void *)&sun, sizeof(sun)) == 7 && recv(s, b, 10, MSG_DONTWAIT) == 7);
}

const struct kind sockets[] = {
	{ "socket-listening", listening },
	{ "socket-connected", connected },
	{ "socket-datagrams", datagrams },
	{ NULL },
};
