#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What is installed, under a real systemd: socket activation, SIGKILL, watchdog, restart, stop and start.
#   systemd_test.sh BUILD_DIR     exit 77: cannot be run here (not root, no systemd)
set -euo pipefail
build=$1
here=$(dirname "$(readlink -f "$0")")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-systemd.XXXXXX")
box=$scratch/box
layer=$scratch/layer
. "$here/box_checks.sh"

finish() {
  local status=$?
  explain $status
  "$box_script" stop "$box" || true
  rm -rf "$scratch"
}
trap finish EXIT

stepstash() { inside stepstash "$@"; }
value() { stepstash get "$1" "$2" -o - | cat; }
started_anew() { [ "$(property ActiveState)" = active ] && [ "$(property MainPID)" != "$1" ] && [ "$(property MainPID)" != 0 ]; }
inode() { inside stat -c %i /dev/shm/stepstash.d/segment; }
rows() { inside sqlite3 -readonly /var/lib/stepstash/build_data.db 'select count(*) from build_data'; }
# Has the daemon killed at once; it does not hear of it.
kill_daemon() { inside kill -KILL "$1"; }

# ---- install -------------------------------------------------------------------------------------------------------

DESTDIR=$layer cmake --install "$build" --prefix /usr > /dev/null
mkdir -p "$layer/etc/stepstash"
# An hour between flushes: what is found again after SIGKILL cannot have come from the database.
printf '%s\n' 'segment_size = "64MiB"' 'flush_interval = "1h"' > "$layer/etc/stepstash/stepstashd.conf"
status=0
"$box_script" start "$box" "$layer" || status=$?
[ $status -eq 0 ] || exit $status

inside systemd-sysusers
inside systemd-tmpfiles --create
inside systemctl daemon-reload
is "the units verify in silence" "" \
  "$(inside systemd-analyze verify --man=no stepstashd.service stepstashd.socket 2>&1 | grep -i stepstash || true)"
is "the service has a static user of its own" "stepstash" "$(inside stat -c %U /var/lib/stepstash)"
is "nothing deletes the segment when the service stops" "no" "$(property RemoveIPC)"

# ---- socket activation ---------------------------------------------------------------------------------------------

inside systemctl start stepstashd.socket
is "the socket alone starts no daemon" "inactive" "$(property ActiveState)"
stepstash set 7 report /etc/os-release --source systemd_test
is "a client's connection starts the daemon" "active" "$(property ActiveState)"
is "the value can be read" "$(inside cat /etc/os-release)" "$(value 7 report)"
is "the service is of type notify" "notify" "$(property Type)"
[ -n "$(property StatusText)" ] || fail "the daemon sends no STATUS="
said "the daemon says what it does: $(property StatusText)"
is "the watchdog is on" "30s" "$(property WatchdogUSec)"
is "the daemon runs as its own user" "stepstash" "$(inside stat -c %U "/proc/$(property MainPID)")"
is "the segment is closed to others" "600 stepstash" "$(inside stat -c '%a %U' /dev/shm/stepstash.d/segment)"
is "the socket is open to the group" "660 stepstash stepstash" "$(inside stat -c '%a %U %G' /run/stepstash/stepstash.sock)"

# ---- rights ---------------------------------------------------------------------------------------------------------

status=0
inside setpriv --reuid=65534 --regid=65534 --clear-groups stepstash stat 7 report > /dev/null 2>&1 || status=$?
[ $status -ne 0 ] || fail "a user outside the group was served"
said "a user outside the group is refused (exit $status)"
is "a member of the group is served" "0" \
  "$(inside setpriv --reuid=65534 --regid=65534 --groups="$(inside getent group stepstash | cut -d: -f3)" \
    sh -c 'stepstash stat 7 report > /dev/null; echo $?')"

is "the state directory is the service's alone" "700 stepstash" "$(inside stat -c '%a %U' /var/lib/stepstash)"
is "so is all that lies in it" "" "$(inside find /var/lib/stepstash -type f -perm /077)"
is "a member of the group cannot read the database" "no" \
  "$(inside setpriv --reuid=65534 --regid=65534 --groups="$(inside getent group stepstash | cut -d: -f3)" \
    sh -c 'cat /var/lib/stepstash/build_data.db > /dev/null 2>&1 && echo yes || echo no')"

# ---- SIGKILL --------------------------------------------------------------------------------------------------------

inside head -c 3000000 /dev/urandom > "$scratch/large"
stepstash set 7 large - < "$scratch/large"
is "no value is in the database yet" "0" "$(rows)"
pid=$(property MainPID)
segment=$(inode)
kill_daemon "$pid"
await "a restart after SIGKILL" started_anew "$pid"
is "after SIGKILL the daemon serves the same segment" "$segment" "$(inode)"
value 7 large | cmp - "$scratch/large" || fail "the large value changed"
is "after SIGKILL values that were in no database are there" "$(inside cat /etc/os-release)" "$(value 7 report)"

# A connection made while the service is down waits in the socket's queue.
inside mkdir -p /run/systemd/system/stepstashd.service.d
inside sh -c "printf '[Service]\nRestartSec=1s\n' > /run/systemd/system/stepstashd.service.d/slow.conf"
inside systemctl daemon-reload
kill_daemon "$(property MainPID)"
waiting_for_restart() { [ "$(property SubState)" = auto-restart ]; }
await "the wait before the restart" waiting_for_restart
echo meanwhile | stepstash set 8 made-while-down -
is "a set made while the daemon is down waits and is served" "meanwhile" "$(value 8 made-while-down)"

# ---- watchdog -------------------------------------------------------------------------------------------------------

inside sh -c "printf '[Service]\nWatchdogSec=1s\nRestartSec=100ms\n' > /run/systemd/system/stepstashd.service.d/slow.conf"
inside systemctl daemon-reload
inside systemctl restart stepstashd.service
pid=$(property MainPID)
sleep 2.5 # of real time: systemd's own
is "the watchdog leaves a daemon alone that works" "active $pid" "$(property ActiveState) $(property MainPID)"
inside kill -STOP "$pid"
await "the watchdog's restart of a daemon that hangs" started_anew "$pid"
said "a daemon that hangs is killed by the watchdog and started again"
value 7 large | cmp - "$scratch/large" || fail "the large value changed"
is "and has everything" "meanwhile" "$(value 8 made-while-down)"
inside rm -r /run/systemd/system/stepstashd.service.d
inside systemctl daemon-reload

# ---- restart, stop and start, reload --------------------------------------------------------------------------------

inside systemctl restart stepstashd.service
is "systemctl restart keeps the segment" "$segment" "$(inode)"
is "an orderly stop writes everything to the database" "3" "$(rows)"
is "after a restart everything is there" "meanwhile" "$(value 8 made-while-down)"

inside systemctl stop stepstashd.service
is "after a stop the segment stays" "$segment" "$(inode)"
is "after a stop the socket still listens" "active" "$(inside systemctl is-active stepstashd.socket)"
is "a get starts the stopped daemon" "meanwhile" "$(value 8 made-while-down)"
is "by socket activation" "active" "$(property ActiveState)"

pid=$(property MainPID)
inside sh -c "printf 'flush_interval = \"20ms\"\n' > /etc/stepstash/stepstashd.conf"
inside systemctl reload stepstashd.service
echo reloaded | stepstash set 9 after-reload -
in_database() { [ "$(rows)" = 4 ]; }
await "a flush with the interval of the new configuration" in_database
is "a reload takes the new configuration into the running daemon" "$pid" "$(property MainPID)"

inside sh -c "echo 'flush_intervall = 1' > /etc/stepstash/stepstashd.conf"
inside systemctl reload stepstashd.service
is "a bad configuration does not hurt a running daemon" "reloaded" "$(value 9 after-reload)"
inside systemctl restart stepstashd.service 2> /dev/null && fail "a daemon with a bad configuration started"
is "a bad configuration is not tried again and again" "0 78" "$(property NRestarts) $(property ExecMainStatus)"

# ---- loss of the segment --------------------------------------------------------------------------------------------

inside sh -c "echo 'segment_size = \"64MiB\"' > /etc/stepstash/stepstashd.conf"
inside systemctl stop stepstashd.service stepstashd.socket
inside rm -r /dev/shm/stepstash.d # what a reboot does
inside sh -c 'chmod 0750 /var/lib/stepstash && chmod 0640 /var/lib/stepstash/*' # as an earlier version left them
inside systemctl reset-failed
inside systemctl start stepstashd.socket
value 7 large | cmp - "$scratch/large" || fail "the large value changed"
is "after the loss of the segment everything comes back from the database" "reloaded" "$(value 9 after-reload)"
is "an upgrade closes the state directory" "700 stepstash" "$(inside stat -c '%a %U' /var/lib/stepstash)"
is "and all that lies in it" "" "$(inside find /var/lib/stepstash -type f -perm /077)"

# ---- damage of the database -----------------------------------------------------------------------------------------

pid=$(property MainPID)
socket=$(inside stat -c %i /run/stepstash/stepstash.sock)
inside sqlite3 -cmd '.dbconfig defensive off' /var/lib/stepstash/build_data.db \
  "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE builds(' WHERE name = 'builds'; PRAGMA schema_version = 4711;" \
  > /dev/null
echo new | stepstash set 10 after-damage -
aside() { inside test -e /var/lib/stepstash/build_data.db.damaged-1 -a -e /var/lib/stepstash/build_data.db; }
await "the damaged database's being kept aside" aside
stepstash flush
is "the same process goes on with a new database" "active $pid" "$(property ActiveState) $(property MainPID)"
is "behind the same socket" "new" "$(value 10 after-damage)"
is "which is the unit's own" "$socket" "$(inside stat -c %i /run/stepstash/stepstash.sock)"
is "what is in memory is in the new database" "3" "$(rows)"
status=0
stepstash doctor > "$scratch/doctor" || status=$?
is "doctor says so" "1" "$status"
grep -q 'build_data.db.damaged-1' "$scratch/doctor" || fail "doctor does not name what is kept: $(cat "$scratch/doctor")"
inside systemctl stop stepstashd.service
is "and the service still stops in order" "inactive 0" "$(property ActiveState) $(property ExecMainStatus)"
