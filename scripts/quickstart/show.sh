# SPDX-License-Identifier: Apache-2.0
# How quickstart and its steps print: one line per thing shown, with bytes and milliseconds. Sourced by bash.

# milliseconds since an arbitrary moment; $EPOCHREALTIME has microseconds, whatever the locale's decimal sign
now() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# show WHAT [BYTES [MILLISECONDS]]
show() {
  local bytes=${2:-} ms=${3:-}
  printf '  %-64s %14s %12s\n' "$1" "${bytes:+$bytes B}" "${ms:+$ms ms}"
}
size_of() { stat -c %s "$1"; }
