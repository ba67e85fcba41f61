#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Step 2 of quickstart's build, another process: takes step 1's artifact in place, verifies it and compiles with it.
set -euo pipefail
project=$1
work=$2
. "$project/scripts/quickstart/show.sh"
mkdir -p "$work/unpacked"
cd "$work"

sum=$(stepstash get "$STEPSTASH_BUILD" artifact.sha256 -o - | cat)
take "$STEPSTASH_BUILD" artifact "$sum" unpacked > done.tsv
while IFS=$'\t' read -r what bytes ms; do show "$what" "$bytes" "$ms"; done < done.tsv

# -H marks a precompiled header in use with "!": the artifact is not merely there, it is what the compiler reads.
begin=$(now)
g++ -std=c++20 -g -O1 -H -Winvalid-pch -include unpacked/prelude.hpp -I unpacked -I "$project" \
  "$project/scripts/quickstart/program.cpp" unpacked/libbase.a -lfmt -o program 2> headers.txt ||
  { cat headers.txt >&2 && exit 1; }
grep -q '^! .*prelude.hpp.gch' headers.txt || { echo "the compiler did not use the artifact" >&2 && exit 1; }
show "compiled and linked a program with the artifact" "$(size_of program)" $(($(now) - begin))
begin=$(now)
said=$(./program)
show "ran it: $said" "" $(($(now) - begin))
cd /
rm -rf "$work"
