#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The shared library exports what client.h declares, all of it and nothing else, and its Debian package says so.
set -eu
library=$1
header=$2
symbols=$3
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
nm -D --defined-only "$library" | awk '$2 != "A" {sub(/@@.*/, "", $3); print $3}' | LC_ALL=C sort >"$directory/exported"
grep -o '\bstepstash_[a-z_]*(' "$header" | tr -d '(' | LC_ALL=C sort -u >"$directory/declared"
# Comments may mention a function before its declaration, never one that does not exist: the sets must be equal.
test -s "$directory/declared"
diff "$directory/declared" "$directory/exported"
sed -n 's/^ \(stepstash_[a-z_]*\)@STEPSTASH_0 [0-9.]*$/\1/p' "$symbols" | LC_ALL=C sort >"$directory/packaged"
diff "$directory/declared" "$directory/packaged"
# Every one of them carries the version node.
if nm -D --defined-only "$library" | grep ' stepstash_' | grep -v '@@STEPSTASH_0$'; then
  echo "exported without a version" >&2
  exit 1
fi
