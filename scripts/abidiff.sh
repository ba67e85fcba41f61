#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Compares the ABI of libstepstash.so with that of a former version: see --help.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

usage() {
  cat << 'END'
Usage: scripts/abidiff.sh [COMMIT]

Builds libstepstash.so of COMMIT (a tag or commit; default: the newest tag v*) and that of this tree, as it is, into
build/abidiff, and compares them with abidiff (Debian: abigail-tools). Functions, variables and types that were added
are allowed. Anything else is shown and fails, unless tests/abi/reviewed.abignore says why programs do not notice.

Exit status: 0 compatible, 1 not, 64 usage, 69 abidiff is not installed, 70 a library cannot be built.
END
}

case ${1:-} in
  --help | -h) usage && exit 0 ;;
  -*) usage >&2 && exit 64 ;;
esac
[ $# -le 1 ] || { usage >&2 && exit 64; }
command -v abidiff > /dev/null || { echo "abidiff is not installed (Debian: abigail-tools)" >&2 && exit 69; }
former=${1:-$(git describe --tags --abbrev=0 --match 'v*' 2> /dev/null || true)}
commit=$(git rev-parse --verify --quiet "$former^{commit}" || true)
[ -n "$commit" ] || { echo "abidiff.sh: no such commit: \"$former\" (name one: there is no tag v*)" >&2 && exit 64; }

work=build/abidiff
# build SOURCE DIRECTORY: with debug information, which is what abidiff reads.
build() {
  cmake -S "$1" -B "$2" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DSTEPSTASH_TESTS=OFF > "$2.log" 2>&1 &&
    cmake --build "$2" --target stepstash >> "$2.log" 2>&1 || { tail -30 "$2.log" >&2 && exit 70; }
}
rm -rf "$work/former-source"
mkdir -p "$work/former-source"
git archive "$commit" | tar -x -C "$work/former-source"
build "$work/former-source" "$work/former"
build . "$work/present"

# The headers' directories leave types out that client.h does not show.
status=0
abidiff --no-added-syms --suppressions tests/abi/reviewed.abignore \
  --headers-dir1 "$work/former-source/libclient/include" --headers-dir2 libclient/include \
  "$work/former/libclient/libstepstash.so" "$work/present/libclient/libstepstash.so" || status=$?
if [ $status -ne 0 ]; then
  echo "abidiff.sh: the ABI is not that of $former (abidiff: $status)"
  exit 1
fi
echo "abidiff.sh: programs that were built with $former work with this library"
