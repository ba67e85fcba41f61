# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# For tests of an installed daemon under a real systemd (systemd_box.sh), which source this. $box is theirs.
box_script=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/systemd_box.sh

inside() { "$box_script" run "$box" "$@"; }
property() { inside systemctl show --property "$1" --value stepstashd.service; }

said() { printf 'ok: %s\n' "$*"; }
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}
# is WHAT EXPECTED ACTUAL
is() {
  [ "$2" = "$3" ] || fail "$1: expected \"$2\", got \"$3\""
  said "$1"
}
# await WHAT COMMAND...: until it succeeds, 20 s at most.
await() {
  local what=$1 deadline=$((SECONDS + 20))
  shift
  until "$@"; do
    [ $SECONDS -lt $deadline ] || fail "$what did not happen within 20 s"
    sleep 0.02 # between two looks
  done
}
# explain STATUS: at the end of a test that failed, what its daemons said.
explain() {
  if [ "$1" -ne 0 ] && [ "$1" -ne 77 ] && [ -e "$box/pid" ]; then
    echo "--- the journal:"
    inside journalctl --no-pager -o short-monotonic -u 'stepstashd*' | tail -60 || true
  fi
}
