#!/usr/bin/env bash
# Looks for known vulnerabilities in what the program calls.
#
#   tests/vuln.sh GOVULNCHECK
#
# Fails when one is found. The database lies on a site of its own: where that
# cannot be reached nothing was checked, which is said and is no failure.
set -euo pipefail

out=$(mktemp)
trap 'rm -f "$out"' EXIT
status=0
"$1" ./... >"$out" 2>&1 || status=$?
if [ $status -ne 0 ] && grep -q 'fetching vulnerabilities' "$out"; then
	echo "vuln: NOT CHECKED: the vulnerability database cannot be reached from here"
	exit 0
fi
cat "$out"
exit $status
