#!/usr/bin/env bash
# Makes everything that is released, in dist: see 'make release'. The same commit, with
# the same Go, gives the same bytes. Of deb and rpm it makes those whose tools are here.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC

version=$1 commit=$2 date=$3

# Packages have versions that begin with a digit and have no dash: v1.2.0-3-gabc is
# 1.2.0+3.gabc, and a commit that no tag leads to is 0~20261123.abc.
case $version in
v[0-9]*) pkg=${version#v} ;;
[0-9]*.*) pkg=$version ;;
*) pkg=0~${date//-/}.$version ;;
esac
pkg=${pkg/-/+}
pkg=${pkg//-/.}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

dist=$PWD/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$dist"
mkdir -p "$dist"

# pack FILE DIR NAME...: a tarball that tells nothing of when and by whom it was made.
pack() {
	local file=$1 dir=$2
	shift 2
	tar -C "$dir" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$@" | gzip -9n >"$file"
}

# The source, with its modules: it builds without a network.
src=migratefs-$pkg
mkdir "$work/$src"
if git rev-parse --git-dir >/dev/null 2>&1; then
	git ls-files -z | grep -zv '^\.ci/' | tar --null -T - -cf - | tar -C "$work/$src" -xf -
else
	tar --exclude=./dist --exclude=./build -cf - . | tar -C "$work/$src" -xf -
fi
(
	cd "$work/$src"
	[ -d vendor ] || go mod vendor
	printf 'VERSION := %s\nCOMMIT := %s\nDATE := %s\n' "$version" "$commit" "$date" >version.mk
	sed -i "s/0\.0\.0/$pkg/" packaging/migratefs.spec
)
pack "$dist/$src.tar.gz" "$work" "$src"

make completions VERSION="$version" COMMIT="$commit" DATE="$date" >/dev/null

for arch in amd64 arm64; do
	make build VERSION="$version" COMMIT="$commit" DATE="$date" GOARCH=$arch BUILT="build/$arch/migratefs" >/dev/null
	# What is in the tarball is what is installed: tar -C / -xzf.
	root=$work/$arch
	make install DESTDIR="$root" BINARY="build/$arch/migratefs" >/dev/null
	pack "$dist/$src-linux-$arch.tar.gz" "$root" etc usr
	if command -v dpkg-deb >/dev/null; then
		packaging/deb.sh "$pkg" "$arch" "$work/deb-$arch" "$dist"
	else
		echo "release.sh: no deb: dpkg-deb is not here" >&2
	fi
	if command -v rpmbuild >/dev/null; then
		packaging/rpm.sh "$pkg" "$arch" "$work/rpm-$arch" "$dist"
	else
		echo "release.sh: no rpm: rpmbuild is not here" >&2
	fi
done

go run ./packaging/sbom -version "$pkg" -commit "$commit" -epoch "$SOURCE_DATE_EPOCH" build/amd64/migratefs build/arm64/migratefs >"$dist/$src.spdx.json"
(cd "$dist" && sha256sum -- * >SHA256SUMS)
(cd "$dist" && ls -l)
