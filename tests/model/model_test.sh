#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Has spin walk through every order of the steps of the pin protocol (pins.pml), and then demands that it finds the harm
# in each variant that lacks a step. With --thorough the model is larger: minutes, and gigabytes of memory.
set -euo pipefail
model=$(dirname "$(readlink -f "$0")")/pins.pml
for program in spin gcc; do
  command -v $program > /dev/null || { echo "$program is not installed: skipped"; exit 77; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# clients, look-ups of each, operations of the daemons
sizes=("1 1 4" "2 1 1")
if [ "${1:-}" = --thorough ]; then sizes+=("1 2 3" "1 2 4" "2 1 2"); fi
harms=(NO_READER_FENCE NO_FENCE_OF_READERS NO_SECOND_LOOK NO_WORD_IN_SECOND_LOOK NO_WORD_AFTER_MISS NO_VERSION NO_WRITER_FENCE NO_SCAN
  SCAN_FIRST NO_SCAN_AFTER_ATTACH NO_ADOPTION REAP_WITHOUT_LOCK NO_STATE_IN_SECOND_LOOK STATE_BEFORE_SLOT NO_CLOSINGS
  NO_CLOSE_FENCE SCAN_BEFORE_CLOSE NO_HONOUR NO_HONOUR_AFTER_OPEN)

former_harms=(NO_READER_FENCE NO_FENCE_OF_READERS NO_STATE_IN_SECOND_LOOK SCAN_FIRST NO_LOOK_AFTER_RELEASE NO_FENCE_OF_ALL NO_LOOK_AGAIN
  NO_HALF_OF_ITS_OWN)

# explore FLAGS MACRO...: the output of a search over the model with these macros. FLAGS, separated by blanks, are for the
# compiler. With -DREVERSE the search tries the last alternative first; it finds most harms after a tenth of the states.
explore() {
  local directory
  local -a flags
  read -r -a flags <<< "$1"
  shift
  directory=$(mktemp -d -p "$work")
  cd "$directory"
  cp "${explored:-$model}" pins.pml
  spin "${@/#/-D}" -a pins.pml > spin.log || { cat spin.log; return 1; }
  # The generated program is spin's; its warnings concern nobody here.
  gcc -w "${flags[@]}" -DSAFETY -DCOLLAPSE -DMEMLIM=12000 -o pan pan.c
  ./pan -m1000000 -w22
}

failed=0
# Each macro in the model has to be among those that are tried, or its step is proven by nothing.
for macro in $(grep -o '\(NO\|SCAN\|REAP\|STATE\)_[A-Z_]*' "$model" | sort -u); do
  case " ${harms[*]} " in *" $macro "*) ;; *) echo "FAILED: $macro is not tried" && failed=1 ;; esac
done

for size in "${sizes[@]/%/ CLAIMED}" "${sizes[@]/%/ SCANNED}"; do
  read -r clients lookups operations fence <<< "$size"
  output=$(explore -O2 READERS="$clients" LOOKUPS="$lookups" OPERATIONS="$operations" "$fence")
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' <<< "$output")
  if grep -q 'errors: 0$' <<< "$output" && ! grep -q 'not completed\|max search depth' <<< "$output"; then
    echo "clients $clients, look-ups $lookups, operations $operations, $fence: holds in all of $states states"
  else
    echo "$output"
    echo "FAILED: clients $clients, look-ups $lookups, operations $operations, $fence"
    failed=1
  fi
done

for harm in "${harms[@]}"; do
  # A block has to be freed and published anew, and freed again, around the closing of the page.
  operations=4 flags="-O0 -DREVERSE" fence=CLAIMED
  case $harm in
    NO_FENCE_OF_READERS) fence=SCANNED ;;
    STATE_BEFORE_SLOT) operations=6 flags="-O1 -DREVERSE" ;;
    NO_HONOUR_AFTER_OPEN) flags=-O0 ;; # 1 s; 30 s in reverse
  esac
  output=$(explore "$flags" READERS=1 LOOKUPS=1 OPERATIONS=$operations "$fence" "$harm")
  if grep -q 'assertion violated' <<< "$output"; then
    echo "$harm: found: $(sed -n 's/^pan:1: assertion violated \(.*\) (at depth.*/\1/p' <<< "$output")"
  else
    echo "$output"
    echo "FAILED: $harm does no harm that the model sees"
    failed=1
  fi
done

# The client's own threads and a segment that was replaced.
explored=$(dirname "$model")/former.pml
for macro in $(grep -o '\(NO\|SCAN\)_[A-Z_]*' "$explored" | sort -u); do
  case " ${former_harms[*]} " in *" $macro "*) ;; *) echo "FAILED: $macro is not tried" && failed=1 ;; esac
done
for macros in FORMER BEST_EFFORT SCANNED "SCANNED BEST_EFFORT"; do
  read -r -a macro <<< "$macros"
  output=$(explore -O0 "${macro[@]}")
  if grep -q 'errors: 0$' <<< "$output" && ! grep -q 'not completed\|max search depth' <<< "$output"; then
    echo "former segment, $macros: holds in all of $(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' <<< "$output") states"
  else
    echo "$output"
    echo "FAILED: former segment, $macros"
    failed=1
  fi
done
for harm in "${former_harms[@]}"; do
  more=()
  case $harm in # the fence of all threads would do for them
    NO_READER_FENCE) more=(BEST_EFFORT) ;;
    NO_FENCE_OF_READERS) more=(BEST_EFFORT SCANNED) ;;
  esac
  output=$(explore "-O0 -DREVERSE" "$harm" "${more[@]}")
  if grep -q 'assertion violated' <<< "$output"; then
    echo "former segment, $harm: found: $(sed -n 's/^pan:1: assertion violated \(.*\) (at depth.*/\1/p' <<< "$output")"
  else
    echo "$output"
    echo "FAILED: former segment: $harm does no harm that the model sees"
    failed=1
  fi
done
exit $failed
