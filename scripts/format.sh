#!/bin/bash
# Checks that every C and C++ file is as clang-format 14 writes it; with --fix makes it so.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
if [ "${1:-}" = --fix ]; then mode=(-i); else mode=(--dry-run -Werror); fi
find . \( -path ./build -o -path ./quickstart-data -o -path ./.git \) -prune -o -type f \
  \( -name '*.cpp' -o -name '*.hpp' -o -name '*.c' -o -name '*.h' \) -print0 |
  xargs -0 clang-format-14 "${mode[@]}"
