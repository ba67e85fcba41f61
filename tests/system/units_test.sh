#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The units as they would be installed: systemd-analyze has nothing to say, and finds little to attack.
#   units_test.sh BUILD_DIR       exit 77: systemd-analyze is not installed
set -euo pipefail
build=$1
command -v systemd-analyze > /dev/null || { echo "systemd-analyze is not installed" >&2; exit 77; }
scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-units.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/usr" > /dev/null
cd "$scratch/usr/lib/systemd/system"
grep -q "^ExecStart=$scratch/usr/sbin/stepstashd\$" stepstashd.service ||
  { echo "the unit does not name the installed daemon:" && grep ExecStart= stepstashd.service && exit 1; }

said=$(systemd-analyze verify --man=no ./stepstashd.service ./stepstashd.socket 2>&1 || echo "exit status $?")
# The machine's own units are read as well; what is wrong with those is not ours.
said=$(grep -i -e stepstash -e 'exit status' <<< "$said" || true)
[ -z "$said" ] || { echo "systemd-analyze verify says: $said" && exit 1; }

# 10 is an exposure of 1.0; a service without any hardening has 9.6.
systemd-analyze security --offline=true --threshold=10 ./stepstashd.service | tail -1
