#!/usr/bin/env bash
# rpm.sh VERSION ARCH WORK DIST: an RPM of what is in DIST: from the source with
# vendored modules where this machine is of ARCH and RPM_FROM_SOURCE=1, which needs
# nothing but Go and make; else from the tarball that was built already.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1 arch=$2 work=$3 dist=$4
case $arch in amd64) cpu=x86_64 ;; arm64) cpu=aarch64 ;; *) cpu=$arch ;; esac

mkdir -p "$work"/{SOURCES,SPECS,BUILD,BUILDROOT,RPMS,SRPMS,tmp}
cp "$dist/migratefs-$version.tar.gz" "$dist/migratefs-$version-linux-$arch.tar.gz" "$work/SOURCES/"
sed "s/0\.0\.0/$version/" packaging/migratefs.spec >"$work/SPECS/migratefs.spec"

how=(--with prebuilt --target "$cpu" -bb)
if [ "${RPM_FROM_SOURCE-}" = 1 ]; then
	how=(-ba)
	# Where Go is not a package.
	rpm -q golang >/dev/null 2>&1 || how+=(--nodeps)
fi
rpmbuild "${how[@]}" \
	--define "_topdir $work" --define "_tmppath $work/tmp" --define "_buildhost reproducible" \
	--define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
	--define "_binary_payload ${RPM_PAYLOAD:-w6.xzdio}" "$work/SPECS/migratefs.spec" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
find "$work/RPMS" "$work/SRPMS" -name '*.rpm' -exec cp {} "$dist/" \;
