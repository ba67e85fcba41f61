#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Step 1 of quickstart's build, a process of its own: compiles, packs, and keeps the result as build data.
# The environment has STEPSTASH_SOCKET and STEPSTASH_BUILD, as a build step of a CI system would.
set -euo pipefail
project=$1
work=$2
. "$project/scripts/quickstart/show.sh"
mkdir -p "$work/artifact"
cd "$work/artifact"

# Real work on real input: the C++ standard library, fmt and nlohmann::json of this machine, precompiled by its g++ (what
# large projects do first in every build), and stepstash's own base/ compiled with debug information, as an archive.
begin=$(now)
cp "$project/scripts/quickstart/prelude.hpp" .
g++ -std=c++20 -g -O1 -x c++-header prelude.hpp -o prelude.hpp.gch
show "precompiled C++ library, fmt and JSON headers (g++ -g)" "$(size_of prelude.hpp.gch)" $(($(now) - begin))

begin=$(now)
for source in errc types; do
  g++ -std=c++20 -g -O1 -I "$project" -c "$project/base/$source.cpp" -o $source.o
done
ar rcs libbase.a errc.o types.o
rm errc.o types.o
show "compiled stepstash's base/ into an archive" "$(size_of libbase.a)" $(($(now) - begin))

cd ..
begin=$(now)
tar -cf artifact.tar -C artifact .
bytes=$(size_of artifact.tar)
show "packed both with tar" "$bytes" $(($(now) - begin))
[ "$bytes" -ge $((64 << 20)) ] || { echo "the artifact has less than 64 MiB" >&2 && exit 1; }
sum=$(sha256sum < artifact.tar)

begin=$(now)
stepstash set "$STEPSTASH_BUILD" artifact artifact.tar --source "step 1: g++ $(g++ -dumpfullversion), tar"
show "stepstash set artifact: visible to every process" "$bytes" $(($(now) - begin))

begin=$(now)
printf '%s' "${sum%% *}" | stepstash set "$STEPSTASH_BUILD" artifact.sha256 - --source "step 1: sha256sum"
show "stepstash set artifact.sha256" 64 $(($(now) - begin))

# Nothing else of this step remains: step 2 has build data only.
cd /
rm -rf "$work"
