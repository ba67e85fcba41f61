#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What is installed is enough for others: programs outside the tree, in C and in C++, built by find_package and by
# pkg-config, work with the installed daemon.
#   install_test.sh BUILD_DIR [SANITIZER]
set -euo pipefail
build=$1
sanitizer=${2:-}
here=$(dirname "$(readlink -f "$0")")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-install.XXXXXX")
segment=install-test-$$
daemon=''
finish() {
  local status=$?
  [ -z "$daemon" ] || { kill -TERM "$daemon" 2> /dev/null && wait "$daemon" || true; }
  [ $status -eq 0 ] || cat "$scratch/log" 2> /dev/null || true
  rm -rf "$scratch" "/dev/shm/$segment.d"
}
trap finish EXIT
unset STEPSTASH_BUILD CFLAGS CXXFLAGS LDFLAGS

prefix=$scratch/prefix
cmake --install "$build" --prefix "$prefix" > "$scratch/log"
# The sources lie outside the tree, too: nothing may be found by a relative path.
cp -r "$here/consumer" "$scratch/consumer"
cd "$scratch"

# A library with a sanitizer needs programs with the same.
flags=()
[ -z "$sanitizer" ] || flags=("-fsanitize=$sanitizer")

cmake -S consumer -B by-cmake -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_FLAGS="${flags[*]}" \
  -DCMAKE_CXX_FLAGS="${flags[*]}" > log
grep -q "^stepstash_DIR:PATH=$prefix/" by-cmake/CMakeCache.txt ||
  { echo "another stepstash than the installed one was found:" && grep stepstash_DIR by-cmake/CMakeCache.txt && exit 1; }
cmake --build by-cmake > log

pc=$(find "$prefix" -name stepstash.pc)
export PKG_CONFIG_PATH=${pc%/*}
read -ra wanted < <(pkg-config --cflags --libs stepstash)
libdir=$(pkg-config --variable=libdir stepstash)
[ -e "$libdir/libstepstash.so" ] || { echo "pkg-config names $libdir, where the library is not" && exit 1; }
# -Wl,-rpath stands for the ldconfig that an installation below /usr would have.
cc -Wall -Wextra -Werror "${flags[@]}" consumer/consumer.c "${wanted[@]}" -Wl,-rpath,"$libdir" -o pkg_config_c > log 2>&1
c++ -std=c++20 -Wall -Wextra -Werror "${flags[@]}" consumer/consumer.cpp "${wanted[@]}" -Wl,-rpath,"$libdir" \
  -o pkg_config_cpp > log 2>&1

export STEPSTASH_SOCKET=$scratch/socket
: > empty.conf
"$prefix/sbin/stepstashd" --config empty.conf --socket "$STEPSTASH_SOCKET" --db "$scratch/db" \
  --segment-name "$segment" --segment-size 16MiB > log 2>&1 &
daemon=$!
deadline=$((SECONDS + 30))
until "$prefix/bin/stepstash" stats > /dev/null 2>&1; do
  kill -0 $daemon 2> /dev/null || { echo "the daemon ended" && exit 1; }
  [ $SECONDS -lt $deadline ] || { echo "the daemon does not answer" && exit 1; }
  sleep 0.02 # between two looks
done

for program in by-cmake/find_package_c by-cmake/find_package_cpp pkg_config_c pkg_config_cpp; do
  "./$program" "${program##*/}" || { echo "$program failed" && exit 1; }
done
count=$("$prefix/bin/stepstash" list 7 --json | grep -o '"name"' | wc -l)
[ "$count" = 4 ] || { echo "the daemon has $count values, and four programs set one each" && exit 1; }

# Build machines have neither Boost nor, as a rule, our libstdc++; a sanitizer brings the latter along.
if [ -z "$sanitizer" ]; then
  for file in "$libdir/libstepstash.so" "$prefix/bin/stepstash"; do
    if readelf -d "$file" | grep -E 'NEEDED.*(stdc\+\+|boost|libgcc)'; then echo "$file needs them" && exit 1; fi
  done
fi
