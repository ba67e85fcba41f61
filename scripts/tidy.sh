#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs clang-tidy 14 with the checks of .clang-tidy over what is shipped (not over the tests, which no check there is
# about), by the compile commands of build/dev. Files that have not changed since they passed are passed over.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
[ -e build/dev/compile_commands.json ] || cmake --preset dev > /dev/null
mkdir -p build/dev/tidy

# The compile commands are g++'s: clang 14 does not know each of its warnings, and must be told that it has C++20's
# coroutines, for it announces them under the name of their draft only, and libstdc++ and Asio ask for the final one.
as_gcc=(--extra-arg=-Wno-unknown-warning-option --extra-arg=-D__cpp_impl_coroutine=201902L
  --extra-arg=-DBOOST_ASIO_HAS_CO_AWAIT --extra-arg=-DBOOST_ASIO_HAS_STD_COROUTINE)

check_one() {
  # What clang-tidy would read: the checks, the compile command's flags, and the file with all its headers of ours.
  local file=$1 stamp
  stamp=build/dev/tidy/$(cat .clang-tidy CMakeLists.txt "$file" $(headers "$file") | sha256sum | cut -c1-32)
  [ -e "$stamp" ] && return 0
  clang-tidy-14 -p build/dev --quiet "${as_gcc[@]}" "$file" 2> "$stamp.log" && mv "$stamp.log" "$stamp" && return 0
  grep -v 'warnings.* generated' "$stamp.log" >&2
  rm -f "$stamp.log"
  return 1
}
# Every header of ours: a change in any of them has all files looked at again, which is cheaper than to find out whom it concerns.
headers() { find base cli daemon libclient persist protocol shm -name '*.hpp' -o -name '*.h' | sort; }

if [ $# -gt 0 ]; then
  check_one "$1"
else
  find base cli daemon libclient persist protocol shm -name '*.cpp' -print0 | xargs -0 -n 1 -P "$(nproc)" "$0"
fi
