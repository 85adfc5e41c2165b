/*
 * ownroot ROOT PROGRAM ARG...: executes a program with ROOT, a mount point, as its root
 * directory, and lets go of what was above (pivot_root(2), "." over ".").
 */
#define _GNU_SOURCE
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 3 || chdir(argv[1]) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return 1;
	execv(argv[2], argv + 2);
	return 2;
}
