#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What bash offers behind some beginnings of a command line: completion_test.sh STEPSTASH COMPLETION
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
ln -s "$1" "$directory/stepstash"
PATH=$directory:$PATH
# shellcheck disable=SC1090
source "$2"

# offered WORD...: what may stand in place of the last of the words, on one line
offered() {
  COMP_WORDS=(stepstash "$@")
  COMP_CWORD=$#
  COMPREPLY=()
  _stepstash
  echo "${COMPREPLY[*]}"
}

failed=0
# offers EXPECTED WORD...: EXPECTED is among what is offered
offers() {
  local expected=$1 got
  shift
  got=$(offered "$@")
  if [[ " $got " != *" $expected "* ]]; then
    echo "behind '$*' not '$expected' but '$got'" >&2
    failed=1
  fi
}

for command in set get stat list builds finish prune drop hold unhold flush doctor stats help; do
  offers $command "${command:0:1}"
  offers $command --socket S "${command:0:1}"
  offers $command --json --timeout=5s "${command:0:1}"
  offers $command help "${command:0:1}"
  offers --help $command --h
done
offers --socket --s
offers --timeout --json --t
offers --sort builds --s
offers bytes builds --sort b
offers --wait --socket S get --w
offers --if-absent set --i
[[ -z $(offered get --wait 5) ]] || failed=1
cd "$directory"
touch input
offers input set 7 n i
offers input get 7 n -o i
offers input --socket i
exit $failed
