#!/usr/bin/env bash
# Puts what was built in place: see 'make install', which calls it. It is the one list
# of what belongs to migratefs: tarballs, deb and rpm are made of it.
set -euo pipefail
cd "$(dirname "$0")/.."

dest=$1 binary=$2 bindir=$3 sbindir=$4 datadir=$5 unitdir=$6 sysconfig=$7

put() { install -D -p -m "$1" "$2" "$dest$3"; }

# link DIR/NAME: a link to the program, relative, wherever sbin is.
link() {
	local to=migratefs
	[ "$(dirname "$1")" = "$bindir" ] || to=$(realpath -m --relative-to="$(dirname "$1")" "$bindir/migratefs")
	mkdir -p "$dest$(dirname "$1")"
	ln -sfn "$to" "$dest$1"
}

put 755 "$binary" "$bindir/migratefs"
link "$bindir/lazyfs"
link "$bindir/migratefs-runc"
link "$bindir/migratefs-crun"
link "$sbindir/mount.migratefs"
link "$sbindir/mount.fuse.migratefs"
link "$sbindir/umount.fuse.migratefs"

put 644 packaging/migratefs@.service "$unitdir/migratefs@.service"
put 644 packaging/migratefs.sysconfig "$sysconfig/migratefs"
install -d -m 755 "$dest/etc/migratefs"

put 644 packaging/migratefs.8 "$datadir/man/man8/migratefs.8"
put 644 packaging/mount.migratefs.8 "$datadir/man/man8/mount.migratefs.8"
put 644 packaging/migratefs.5 "$datadir/man/man5/migratefs.5"
for page in mount.fuse.migratefs.8:mount umount.fuse.migratefs.8:mount lazyfs.8: migratefs-runc.8: migratefs-crun.8:; do
	to=${page#*:}
	echo ".so man8/${to:+$to.}migratefs.8" >"$dest$datadir/man/man8/${page%:*}"
	chmod 644 "$dest$datadir/man/man8/${page%:*}"
done

completions=${COMPLETIONS:-build/completions}
put 644 "$completions/migratefs" "$datadir/bash-completion/completions/migratefs"
put 644 "$completions/_migratefs" "$datadir/zsh/site-functions/_migratefs"
put 644 "$completions/migratefs.fish" "$datadir/fish/vendor_completions.d/migratefs.fish"

put 755 packaging/slurm/migratefs-drain.sbatch "$datadir/migratefs/slurm/migratefs-drain.sbatch"
for doc in README.md CHANGELOG.md docs/*.md packaging/kubernetes/*.yaml; do
	put 644 "$doc" "$datadir/doc/migratefs/$(basename "$doc")"
done
put 644 LICENSE "$datadir/licenses/migratefs/LICENSE"
