#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs clang-tidy 14 with the checks of .clang-tidy over what is shipped (not over the tests, which no check there is
# about), by the compile commands of build/dev. With a file: over that one. Six files of a folder are read as one, since
# most of the time goes to the headers of Boost; sets of files that have not changed since they passed are skipped. bench/ is
# checked where build/dev has it (cmake --preset dev -DSTEPSTASH_BENCH=ON), for it needs packages that nothing else does.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
[ -e build/dev/compile_commands.json ] || cmake --preset dev > /dev/null
mkdir -p build/dev/tidy

# What the compile commands say, but g++'s warnings. clang 14 must be told that it has C++20's coroutines: it announces
# them under the name of their draft only, and libstdc++ and Asio ask for the final one.
as_gcc=(-Wno-unknown-warning-option -D__cpp_impl_coroutine=201902L -DBOOST_ASIO_HAS_CO_AWAIT
  -DBOOST_ASIO_HAS_STD_COROUTINE)
flags_of() {
  python3 - "$PWD" "${1%%/*}" << 'END'
import json, shlex, sys
entries = json.load(open("build/dev/compile_commands.json"))
previous = ""
# The folder's files, or those that include some of them at once; of its targets the one that uses most.
of_folder = [f"{sys.argv[1]}/{sys.argv[2]}/", f"{sys.argv[1]}/build/dev/{sys.argv[2]}/CMakeFiles/"]
commands = [entry["command"] for entry in entries if entry["file"].startswith(tuple(of_folder))]
command = max(commands, key=lambda text: (text.count(" -I") + text.count(" -isystem"), text.count(" -D")))
for word in shlex.split(command):
    if word.startswith(("-I", "-D", "-std=")) or word.startswith("/") and previous == "-isystem":
        print(("-isystem" if previous == "-isystem" else "") + word)
    previous = word
END
}

# Every header of ours: a change in any of them has all files checked again, which is cheaper than finding out which
# files it concerns.
headers() { find base bench cli daemon libclient persist protocol shm -name '*.hpp' -o -name '*.h' | sort; }

check() {
  local stamp flags
  stamp=build/dev/tidy/$(cat .clang-tidy CMakeLists.txt scripts/tidy.sh "$@" $(headers) | sha256sum | cut -c1-32)
  [ -e "$stamp" ] && return 0
  mapfile -t flags < <(flags_of "$1")
  printf "#include \"$PWD/%s\"\n" "$@" > "$stamp.cpp"
  clang-tidy-14 --quiet --config-file=.clang-tidy "$stamp.cpp" -- "${flags[@]}" "${as_gcc[@]}" 2> "$stamp.log" &&
    rm "$stamp.cpp" && mv "$stamp.log" "$stamp" && return 0
  grep -v 'warnings.* generated' "$stamp.log" >&2
  rm -f "$stamp.log" "$stamp.cpp"
  return 1
}

if [ $# -gt 0 ]; then
  check "$@"
else
  folders=(base cli daemon libclient persist protocol shm)
  if grep -q '/bench/main\.cpp"' build/dev/compile_commands.json; then folders+=(bench); fi
  for folder in "${folders[@]}"; do
    find $folder -name '*.cpp' | sort | xargs -n 6
  done | xargs -d '\n' -P "$(nproc)" -I{} sh -c "$0 {}"
fi
