#!/usr/bin/env bash
# make demo: a running process moves to another host, and its files follow.
#
# Two hosts are made on this machine, a and b, of network, mount and UTS
# namespaces: they share no file below /srv and no network but their own. On a
# runs an ordinary sshd and a job with open files. The job is dumped with CRIU
# and restored on b. Whatever was made is gone at the end, also after ^C.
#
#   KEEP=1 tests/demo/demo.sh      leaves the logs, and says where
# shellcheck disable=SC2016 # what is in single quotes is for another shell
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root, for namespaces, mounts and CRIU: run sudo make demo"
[ -c /dev/fuse ] || die "needs /dev/fuse: run modprobe fuse, or start the container with --device /dev/fuse"
tests/testbed/install.sh --demo 2>/dev/null || tests/testbed/install.sh --demo
criu=$(tests/testbed/criu.sh 2>/dev/null)
say "building"
make build >/dev/null
CGO_ENABLED=0 go build -trimpath -o build/demo-job ./tests/demo/job

dir=$(mktemp -d /var/tmp/migratefs-demo.XXXXXX)
chmod 755 "$dir"
declare -A keeper # of each host: the process that holds its namespaces

# on HOST COMMAND...: runs it there.
on() { nsenter -t "${keeper[$1]}" --mount --net --uts -- "${@:2}"; }

# everything_on HOST: the pids of what runs in its network.
everything_on() {
	local here link
	here=$(readlink "/proc/${keeper[$1]}/ns/net") || return 0
	for link in /proc/[0-9]*/ns/net; do
		[ "$(readlink "$link" 2>/dev/null)" = "$here" ] && echo "${link//[^0-9]/}"
	done
	return 0
}

cleanup() {
	trap '' INT TERM HUP
	local host pids
	{ # and no word from bash about who was killed
		for host in "${!keeper[@]}"; do
			pids=$(everything_on "$host")
			# shellcheck disable=SC2086
			[ -z "$pids" ] || kill -KILL $pids || true
		done
		wait || true # the namespaces, and the mounts in them, go now
	} 2>/dev/null
	if [ -n "${KEEP-}" ]; then
		say "logs: $dir"
	else
		rm -rf --one-file-system "$dir"
	fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# host NAME ADDRESS HIDDEN: makes a host; HIDDEN is a directory it cannot see.
host() {
	mkdir -p "$dir/$1/srv" "$dir/$3"
	unshare --mount --net --uts --propagation private sleep infinity &
	keeper[$1]=$!
	until [ "$(readlink "/proc/${keeper[$1]}/ns/uts")" != "$(readlink /proc/self/ns/uts)" ] &&
		[ "$(cat "/proc/${keeper[$1]}/comm")" = sleep ]; do sleep 0.01; done
	on "$1" sh -ec '
		hostname "$1"
		ip link set lo up
		mount --bind "$2/$1/srv" /srv
		mount -t tmpfs -o mode=755 run /run
		mkdir -m 755 /run/sshd
		mount -t tmpfs -o mode=0,size=4k hidden "$2/$3"
	' sh "$1" "$dir" "$3"
}

host a 10.77.0.1 b
host b 10.77.0.2 a
on a ip link add eth0 type veth peer name eth0 netns "${keeper[b]}"
on a ip addr add 10.77.0.1/24 dev eth0
on b ip addr add 10.77.0.2/24 dev eth0
on a ip link set eth0 up
on b ip link set eth0 up

# sshd on a, and an ssh_config on b that knows a.
ssh=$dir/ssh
mkdir -m 700 "$ssh"
ssh-keygen -q -t ed25519 -N '' -C demo -f "$ssh/host_key"
ssh-keygen -q -t ed25519 -N '' -C demo -f "$ssh/id"
cp "$ssh/id.pub" "$ssh/authorized_keys"
echo "a $(cat "$ssh/host_key.pub")" >"$ssh/known_hosts"
cat >"$ssh/sshd_config" <<-CONF
	ListenAddress 10.77.0.1
	HostKey $ssh/host_key
	AuthorizedKeysFile $ssh/authorized_keys
	PidFile none
	StrictModes no
	UsePAM no
	PermitRootLogin prohibit-password
	Subsystem sftp internal-sftp
CONF
cat >"$ssh/ssh_config" <<-CONF
	Host a
		HostName 10.77.0.1
		HostKeyAlias a
		IdentityFile $ssh/id
		UserKnownHostsFile $ssh/known_hosts
CONF
on a "$(command -v sshd)" -D -e -f "$ssh/sshd_config" 2>"$dir/sshd.log" &
on b mount --bind "$ssh/ssh_config" /etc/ssh/ssh_config
for _ in $(seq 100); do
	on b ssh -oBatchMode=yes root@a true 2>/dev/null && break
	sleep 0.1
done
on b ssh -oBatchMode=yes root@a true || die "sshd on host a does not answer: $(cat "$dir/sshd.log")"

mib() { awk -v b="$1" 'BEGIN { printf b < 1048576 ? "%.0f KiB" : "%.1f MiB", b < 1048576 ? b / 1024 : b / 1048576 }'; }
# received: what has come to b from its network until now, in bytes.
received() { on b awk '/eth0:/ { print $2 }' /proc/net/dev; }
since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f s", to - from }'; }
# fingerprint: everything that can be seen of a's files, and their contents.
fingerprint() {
	on a sh -c 'cd /srv/job && find . -printf "%P %y %m %U:%G %s %T@ %C@\n" | sort && sha256sum -- *'
}

say
say "host a: starts the job"
mkdir -m 755 "$dir/a/srv/job"
cp build/demo-job "$dir/a/srv/job/job"
on a /srv/job/job -make /srv/job
# CRIU knows the mounts of host a only: standard streams are opened there, and
# what this script was started with stays behind.
nsenter -t "${keeper[a]}" --mount --net --uts -- bash -c '
	for fd in /proc/$$/fd/*; do
		fd=${fd##*/}
		[ "$fd" -le 2 ] || eval "exec $fd>&-"
	done
	exec setsid /srv/job/job /srv/job </dev/null >/srv/job.out 2>&1
' &
disown
until [ "$(wc -l <"$dir/a/srv/job/log")" -ge 20 ]; do sleep 0.05; done
job=$(on a sh -c 'for p in /proc/[0-9]*; do [ "$(readlink $p/exe)" = /srv/job/job ] && echo "${p#/proc/}"; done; true')
[ -n "$job" ] || die "the job did not start: $(cat "$dir/a/srv/job.out")"
open=$(on a sh -c 'cd /srv/job && cat job input archive state log table counters | wc -c')
say "        pid $job in /srv/job; it holds 7 files open or mapped, $(mib "$open") in all"

start=$EPOCHREALTIME
mkdir "$dir/a/srv/images"
on a "$criu" dump -t "$job" -D /srv/images -o dump.log >/dev/null 2>&1 ||
	die "criu dump failed: $(grep Error "$dir/a/srv/images/dump.log")"
say "        criu dump: $(since "$start"); the job is gone from here"
say "        its log ends with  $(tail -n 1 "$dir/a/srv/job/log")"
fingerprint >"$dir/before"

say "host b: has no /srv/job"
[ ! -e "$dir/b/srv/job" ] || die "host b has the files already"
on b scp -q -r root@a:/srv/images /srv/images
say "        copied the images with scp: $(mib "$(du -sb "$dir/b/srv/images" | cut -f1)"), the memory of the process and none of its files"

before=$(received)
start=$EPOCHREALTIME
say "        migratefs restore --from root@a images"
on b "$PWD/build/migratefs" restore --criu "$criu" --from root@a --upperdir /srv/upper /srv/images \
	>"$dir/restore.log" 2>&1 || die "the restore failed: $(cat "$dir/restore.log")"
took=$(since "$start")
fetched=$(($(received) - before))
say "        the job runs after $took; fetched by then: $(mib $fetched) of the $(mib "$open") it holds"

running=''
for pid in $(everything_on b); do
	[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = job ] && running=$pid
done
[ -n "$running" ] || die "no job runs on host b: $(cat "$dir/restore.log")"
log=/proc/$running/root/srv/job/log

first=$(wc -l <"$dir/a/srv/job/log")
say "        it goes on with    $(sed -n "$((first + 1))p" "$log")"
sleep 3
say "        3 s later          $(tail -n 1 "$log")"
say "        fetched since:     $(mib $(($(received) - before - fetched)))"
[ "$(wc -l <"$log")" -gt $((first + 20)) ] || die "the job does not go on"
! grep -n WRONG "$log" || die "the job has found something wrong"
awk '$2 != NR ":" { print "line " NR ": " $0; bad = 1 } END { exit bad }' "$log" || die "its log is not in one piece"
say "        its log is in one piece: steps 1 to $first of a, then those of b"

say "host a: must be as it was when the job left"
fingerprint >"$dir/after"
diff "$dir/before" "$dir/after" || die "the files on host a have changed"
say "        $(wc -l <"$dir/before") checks of names, owners, modes, times and contents: the same"
say
say "done"
