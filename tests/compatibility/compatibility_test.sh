#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Upgrades of a daemon while containers keep their former libstepstash. Former versions are built from git's history:
#   FORMER  the oldest state with protocol 1 and the present segment layout. Its clients are served in full, new ones
#           and those that live through the upgrade (docs/compatibility.md).
#   FIRST   version 0.1: protocol 1, segment layout 1. Its clients are told what does not fit.
# Raise FORMER to the last release when the daemon no longer speaks protocol 1.
#   compatibility_test.sh STEPSTASHD STEPSTASH DIRECTORY    exit 77: there is no such history here
set -euo pipefail
FORMER=c7ed459d42029abd9cd2a35857e6f23bd2193e14
FIRST=582ab61739bf9d86bc39e5d4eb69a7128ba2e92e
daemon_program=$1
command_program=$2
kept=$3 # what is built stays: a commit does not change
here=$(dirname "$(readlink -f "$0")")
root=$(readlink -f "$here/../..")
project_git() { git -c safe.directory='*' -C "$root" "$@"; }
for commit in $FORMER $FIRST; do
  project_git cat-file -e "$commit^{commit}" 2> /dev/null ||
    { echo "no git history with commit $commit here (an archive, a shallow clone?): skipped" && exit 77; }
done

scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-compatibility.XXXXXX")
segment=compatibility-test-$$
daemon='' client='' to_client='' from_client=''
finish() {
  local status=$?
  [ -z "$to_client" ] || exec {to_client}>&-
  [ -z "$client" ] || kill "$client" 2> /dev/null || true
  [ -z "$daemon" ] || { kill -TERM "$daemon" 2> /dev/null && wait "$daemon" || true; }
  [ $status -eq 0 ] || cat "$scratch/daemon.log" 2> /dev/null || true
  rm -rf "$scratch" "/dev/shm/$segment.d" /dev/shm/"$segment"*
}
trap finish EXIT
unset STEPSTASH_BUILD STEPSTASH_SOCKET STEPSTASH_CONFIG STEPSTASH_LIBRARY CFLAGS CXXFLAGS LDFLAGS

# build COMMIT TARGET...: into $kept/COMMIT/build, and client.c against its library.
build() {
  local commit=$1 directory=$kept/$1
  shift
  if [ ! -e "$directory/complete" ]; then
    rm -rf "$directory"
    mkdir -p "$directory/source"
    project_git archive "$commit" | tar -x -C "$directory/source"
    # As fast as can be: what is tested is what is said, not how fast.
    cmake -S "$directory/source" -B "$directory/build" -G Ninja -DCMAKE_BUILD_TYPE=None -DSTEPSTASH_TESTS=OFF \
      > "$directory/log" 2>&1 && cmake --build "$directory/build" --target "$@" >> "$directory/log" 2>&1 ||
      { tail -50 "$directory/log" && echo "commit $commit cannot be built here" && exit 1; }
    touch "$directory/complete"
  fi
  cc -std=c11 -Wall -Wextra -Werror -I "$directory/source/libclient/include" "$here/client.c" \
    -L "$directory/build/libclient" -lstepstash -Wl,-rpath,"$directory/build/libclient" -o "$scratch/client-$commit"
}

# is WHAT EXPECTED GOT: EXPECTED is a pattern of the shell.
is() {
  # shellcheck disable=SC2053 # a pattern
  if [[ $3 == $2 ]]; then
    echo "ok      $1"
  else
    echo "FAILED  $1: \"$3\" instead of \"$2\""
    exit 1
  fi
}

socket=$scratch/socket
start() { # start PROGRAM
  : > "$scratch/empty.conf"
  rm -f "$scratch/ready"
  "$1" --config "$scratch/empty.conf" --socket "$socket" --db "$scratch/db" --segment-name "$segment" \
    --segment-size 64MiB >> "$scratch/daemon.log" 2>&1 &
  daemon=$!
  local deadline=$((SECONDS + 30))
  until python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$socket" 2> /dev/null; do
    kill -0 $daemon 2> /dev/null || { echo "$1 ended" && exit 1; }
    [ $SECONDS -lt $deadline ] || { echo "$1 does not listen" && exit 1; }
    sleep 0.02 # between two looks
  done
}
stop() { # stop SIGNAL
  kill "-$1" "$daemon"
  wait "$daemon" || true
  daemon=''
}

# A client that stays: ask COMMAND gives its answer.
connect() { # connect COMMIT
  coproc CLIENT { exec "$scratch/client-$1" "$socket"; }
  client=$CLIENT_PID
  from_client=${CLIENT[0]} to_client=${CLIENT[1]}
  answer
}
answer() { IFS= read -r -t 60 -u "$from_client" line || line='no answer'; }
ask() {
  echo "$1" >&"$to_client"
  answer
}
leave() {
  exec {to_client}>&- && to_client=''
  wait "$client" || { echo "the client ended with status $?" && exit 1; }
  client=''
}

build $FORMER stepstash stepstashd
build $FIRST stepstash

# ---- a former library, and an upgrade of the daemon under it ------------------------------------------------------------

start "$kept/$FORMER/build/daemon/stepstashd"
connect $FORMER
is "the former library speaks to its own daemon" 'connected *' "$line"
ask "set small 1000" && is "sets a value in a message" ok "$line"
ask "set large 3000000" && is "sets a value through the staging ring" ok "$line"
ask "hold large" && is "holds a view" "ok 3000000" "$line"
is "the present command is told to upgrade the daemon" '*speaks protocol version 2, this daemon*a daemon is upgraded before its clients*' \
  "$("$command_program" --socket "$socket" stats 2>&1 || true)"
stop TERM

start "$daemon_program"
ask "held large" && is "the view is what it was after the upgrade" "ok 3000000" "$line"
ask "get small" && is "a value from before the upgrade is there" "ok 1000" "$line"
ask "set after 2000" && is "the client that was there before sets a value" ok "$line"
ask "set after-large 2000000" && is "and a large one" ok "$line"
ask "list" && is "it lists them all" "ok small large after after-large" "$line"
# The bytes follow from the first letter and the length of the name: those of "after" are right for "again".
"$command_program" --socket "$socket" get 7 after | "$command_program" --socket "$socket" set 7 again
ask "wait again" && is "the present command got its value, and it finds what that set" "ok 2000" "$line"
for request in flush finish stats; do
  ask $request && is "$request is answered" ok "$line"
done

stop KILL
start "$daemon_program"
ask "get after" && is "it goes on after a kill of the present daemon" "ok 2000" "$line"
ask "set later 70000" && is "and sets" ok "$line"
leave

connect $FORMER
is "a new process with the former library connects" 'connected *' "$line"
ask "get small" && is "reads" "ok 1000" "$line"
ask "set new 100000" && is "sets" ok "$line"
ask "list" && is "lists" "ok small large after after-large again later new" "$line"
leave

# ---- version 0.1, which cannot read this segment ------------------------------------------------------------------------

connect $FIRST
is "version 0.1 is told that the layout differs, with both versions" \
  'error -10 *segment of daemon "*" with library 0.1.0: segment layout differs*' "$line"
if wait "$client"; then echo "FAILED  version 0.1 connected" && exit 1; fi
client='' to_client=''
is "and the daemon serves on" 2000 "$("$command_program" --socket "$socket" get 7 after | wc -c)"
stop TERM

# ---- the former version's own test of the C ABI, against the present daemon ---------------------------------------------

cc -std=c11 -w -I "$kept/$FORMER/source/libclient/include" "$kept/$FORMER/source/tests/abi/c_abi_test.c" \
  -L "$kept/$FORMER/build/libclient" -lstepstash -Wl,-rpath,"$kept/$FORMER/build/libclient" -o "$scratch/c_abi_test"
"$scratch/c_abi_test" "$daemon_program"
