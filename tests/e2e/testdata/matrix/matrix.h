/*
 * Small programs, one for each way in which a process refers to a file. Each is
 * a function that reads from top to bottom: it sets something up, calls moved(),
 * which returns when the process has been dumped and restored, and checks that
 * nothing has changed. It works in a directory of its own: at().
 */
#ifndef MATRIX_H
#define MATRIX_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Ends this kind, and says what is wrong, unless cond is true. */
#define check(cond) \
	do { \
		if (!(cond)) \
			wrong(__func__, __LINE__, #cond); \
	} while (0)

void wrong(const char *func, int line, const char *what) __attribute__((noreturn));

/* Returns when this process has been moved, or so the test says. */
void moved(void);

/* The path of a name in this kind's directory; eight are valid at a time. */
const char *at(const char *name);

enum { PAGE = 4096, SIZE = 100000 };

/* Makes a file of SIZE bytes, of user 1234 and group 567, and opens it. */
int make(const char *name, int flags, mode_t mode);

/* Whether the bytes from off on are those that make() wrote there. */
bool holds(int fd, off_t off, size_t len);

/* What make() writes at an offset. */
unsigned char pattern(off_t off);

/* Whether two descriptors are of the same file. */
bool same(int a, int b);

/* Runs f in a child and returns its exit code. */
int in_child(int (*f)(void));

struct kind {
	const char *name;
	void (*run)(void);
};

/* Each ends with a nameless one. */
extern const struct kind files[], maps[], dirs[], names[], sockets[], locks[], watches[], tasks[];

#endif
