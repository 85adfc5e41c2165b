#!/bin/sh
# Makes the golden images of this directory anew, as root, with the real CRIU:
#
#   plain/      a process and its child on the host's own mounts (job.c)
#   container/  the same in mount and pid namespaces of its own
#   kinds/      every other kind of reference, on the host's own mounts (kinds.c)
#   mounts/     mounts of its own: a bind of a part of the root, an external one,
#               a tmpfs
#   left-running.log  the end of CRIU's log of a process that went on
#   old/        plain/ in the form CRIU had before 3.0 (reg-files.img); CRIU 2
#               cannot run on today's kernels, so TestMakeOld converts it
#
# What fills memory images (pages-*.img) is dropped: nobody here reads it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
criu=$("$here/../../tests/testbed/criu.sh")
work=/tmp/migratefs-golden
pid=
outside=
trap 'kill -9 $pid $outside 2>/dev/null || true; umount -l $work/root2/external 2>/dev/null || true; umount -l $work/root2 2>/dev/null || true; [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; umount -l $work/root 2>/dev/null || true; rm -rf $work' EXIT
trap 'exit 1' INT TERM

rm -rf $work
mkdir -p $work/job $work/images $work/root
gcc -Os -static -s -Wl,--build-id -o $work/job/bin "$here/job.c"
gcc -Os -static -s -Wl,--build-id -o $work/kinds "$here/kinds.c"

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
	case " $* " in *" --leave-running "*) tail -n 5 $work/images/dump.log >"$here/$name/dump.log" ;; *) pid= ;; esac
	rm -f $work/images/pages-*.img $work/images/dump.log $work/images/stats-dump
	cp $work/images/*.img "$here/$name/"
}

# start PROGRAM DIR: sets pid.
start() {
	mkdir -p "$2"
	setsid "$1" "$2" </dev/null >/dev/null 2>&1 &
	pid=$!
	ready "$2"
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

# The kinds. Python holds the socket that a process outside listens on.
mkdir -p $work/kinds.d
python3 -c 'import socket,sys,time; s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.bind(sys.argv[1]); time.sleep(300)' $work/kinds.d/outside &
outside=$!
for _ in $(seq 100); do [ ! -e $work/kinds.d/outside ] || break; sleep 0.1; done
start $work/kinds $work/kinds.d
dump kinds --force-irmap --irmap-scan-path $work/kinds.d --link-remap --file-locks --ext-unix-sk
kill $outside

# A root of its own filesystem, as containers have it: CRIU mounts parts of it itself.
mkdir -p $work/root2 $work/lower/srv/kinds.d $work/lower/proc $work/lower/old $work/lower/external $work/upper $work/work $work/elsewhere
cp $work/kinds $work/lower/srv/
mount -t overlay -o lowerdir=$work/lower,upperdir=$work/upper,workdir=$work/work overlay $work/root2
mount --make-private $work/root2
mount --bind $work/elsewhere $work/root2/external
unshare -mpf --propagation private $work/kinds /srv/kinds.d $work/root2 </dev/null >/dev/null 2>&1 &
outer=$!
ready $work/root2/srv/kinds.d
pid=$(pgrep -P $outer)
dump mounts --force-irmap --irmap-scan-path /srv/kinds.d --external 'mnt[/external]:data'
wait $outer 2>/dev/null || true

start $work/job/bin $work/again
dump left-running --leave-running
kill -9 $pid
pid=
mv "$here/left-running/dump.log" "$here/left-running.log"
rm -r "$here/left-running"

cd "$here/.." && MIGRATEFS_MAKE_OLD=1 go test -run 'TestMakeOld$' -count=1 .
du -sh "$here"/*/
