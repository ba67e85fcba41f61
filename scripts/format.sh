#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Checks that every C and C++ file is as clang-format 14 writes it, and that every source file has its licence line
# (spdx.sh); with --fix makes it so.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
if [ "${1:-}" = --fix ]; then mode=(-i) spdx=(); else mode=(--dry-run -Werror) spdx=(--check); fi
scripts/spdx.sh "${spdx[@]}"
find . \( -path ./build -o -path ./quickstart-data -o -path ./.git \) -prune -o -type f \
  \( -name '*.cpp' -o -name '*.hpp' -o -name '*.c' -o -name '*.h' \) -print0 |
  xargs -0 clang-format-14 "${mode[@]}"
