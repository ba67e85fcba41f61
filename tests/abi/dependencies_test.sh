#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Neither the library nor the CLI needs libstdc++, libgcc or Boost at run time.
set -eu
for file in "$@"; do
  needed=$(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
  echo "$file needs: ${needed:-nothing}" | tr '\n' ' '
  echo
  if echo "$needed" | grep -E 'libstdc\+\+|libgcc|libboost'; then
    echo "$file must not need these" >&2
    exit 1
  fi
done
readelf -d "$1" | grep -q 'SONAME.*\[libstepstash\.so\.0\]'
