#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Gives every source file its licence line, as the first line, or behind #!. With --check says which lack it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
line='SPDX-License-Identifier: Apache-2.0'
case ${1:-} in
  '') fix=yes ;;
  --check) fix=no ;;
  *) echo "Usage: scripts/spdx.sh [--check]" >&2 && exit 64 ;;
esac

# sources: every file of code. Without an extension those that begin with #! count.
sources() {
  find . \( -path ./build -o -path ./quickstart-data -o -path ./.git -o -path ./tests/fuzz/corpus \) -prune -o -type f \
    \( -name '*.cpp' -o -name '*.hpp' -o -name '*.c' -o -name '*.h' -o -name '*.py' -o -name '*.sh' -o -name '*.bash' \
    -o -name '*.pml' -o -name CMakeLists.txt \) -print
  find . \( -path ./build -o -path ./quickstart-data -o -path ./.git -o -path ./tests/fuzz/corpus \) -prune -o -type f \
    -perm -u+x ! -name '*.*' -print
}

missing=0
while read -r file; do
  if head -n 2 "$file" | grep -q "$line"; then continue; fi
  if [ $fix = no ]; then
    echo "$file: no line \"$line\": scripts/spdx.sh adds it" >&2
    missing=1
    continue
  fi
  case $file in
    *.cpp | *.hpp) comment="// $line" ;;
    *.c | *.h | *.pml) comment="/* $line */" ;;
    *) comment="# $line" ;;
  esac
  if head -c 2 "$file" | grep -q '^#!'; then sed -i "1a\\$comment" "$file"; else sed -i "1i\\$comment" "$file"; fi
done < <(sources | sort)
exit $missing
