#!/bin/sh
# Makes the golden images of this directory anew, as root, with the real CRIU:
#
#   plain/      a process and its child on the host's own mounts (job.c)
#   container/  the same in mount and pid namespaces of its own
#   old/        plain/ in the form CRIU had before 3.0 (reg-files.img); CRIU 2
#               cannot run on today's kernels, so TestMakeOld converts it
#
# What fills memory images (pages-*.img) is dropped: nobody here reads it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
criu=$("$here/../../tests/testbed/criu.sh")
work=/tmp/migratefs-golden
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; umount -l $work/root 2>/dev/null || true; rm -rf $work' EXIT
trap 'exit 1' INT TERM

rm -rf $work
mkdir -p $work/job $work/images $work/root
gcc -Os -static -s -Wl,--build-id -o $work/job/bin "$here/job.c"

# dump NAME CRIU-OPTION...: dumps $pid into NAME.
dump() {
	name=$1
	shift
	rm -rf $work/images "${here:?}/$name"
	mkdir -p $work/images "$here/$name"
	timeout 60 "$criu" dump -t "$pid" -D $work/images -o dump.log -v4 "$@" || {
		grep -a Error $work/images/dump.log
		exit 1
	}
	pid=
	rm -f $work/images/pages-*.img $work/images/dump.log $work/images/stats-dump
	cp $work/images/*.img "$here/$name/"
}

# ready DIR: waits until the job has opened everything.
ready() {
	for _ in $(seq 100); do
		[ ! -e "$1/ready" ] || return 0
		sleep 0.1
	done
	echo "make.sh: the job did not start" >&2
	exit 1
}

setsid $work/job/bin $work/job </dev/null >/dev/null 2>&1 &
pid=$!
ready $work/job
dump plain --force-irmap --irmap-scan-path $work/job

mkdir -p $work/root/srv/job $work/root/proc $work/root/old
cp $work/job/bin $work/root/srv/
mount --bind $work/root $work/root
mount --make-private $work/root
unshare -mpf --propagation private $work/job/bin /srv/job $work/root </dev/null >/dev/null 2>&1 &
outer=$!
ready $work/root/srv/job
pid=$(pgrep -P $outer)
dump container --force-irmap --irmap-scan-path /srv/job --external 'mnt[]'
wait $outer 2>/dev/null || true

cd "$here/.." && MIGRATEFS_MAKE_OLD=1 go test -run 'TestMakeOld$' -count=1 .
du -sh "$here"/*/
