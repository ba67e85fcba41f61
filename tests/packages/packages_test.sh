#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Debian packages: their contents and fields, lintian, and what happens to a machine that installs, upgrades, removes and
# purges them: one with a real systemd, and a bare tree that has none of what they depend on.
#   packages_test.sh WORK_DIR     exit 77: cannot be run here, or not all of it; it says what was
# WORK_DIR keeps what is slow to make: the build, and the bare tree. STEPSTASH_PACKAGES=DIR: tests the packages there.
set -euo pipefail
work=$1
here=$(dirname "$(readlink -f "$0")")
project=$(dirname "$(dirname "$here")")
. "$project/scripts/lib.sh"
. "$project/tests/system/box_checks.sh"

cannot() {
  echo "packages_test: $*" >&2
  exit 77
}
[ "$(id -u)" = 0 ] || cannot "only root can install packages"
for tool in dpkg-deb dpkg-shlibdeps lintian debootstrap unshare; do
  command -v $tool > /dev/null || cannot "$tool is not installed"
done

mkdir -p "$work"
work=$(readlink -f "$work")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-packages.XXXXXX")
box=$scratch/box
finish() {
  local status=$?
  explain $status
  # The reader and the writer of an upgrade end first: a box does not stop while somebody outside waits for a process in it.
  rm -f "$scratch/upgrading"
  exec 9>&-
  wait
  "$box_script" stop "$box" || true
  rm -rf "$scratch"
}
trap finish EXIT

# same WHAT EXPECTED ACTUAL: files of lines
same() {
  diff -u "$2" "$3" >&2 || fail "$1 (- expected, + got)"
  said "$1"
}

# ---- making them ----------------------------------------------------------------------------------------------------

if [ -n "${STEPSTASH_PACKAGES:-}" ]; then
  debs=$(readlink -f "$STEPSTASH_PACKAGES")
else
  debs=$scratch/debs
  "$project/scripts/packages" --build "$work/build" "$debs"
fi
names="libstepstash-dev libstepstash0 python3-stepstash stepstash stepstashd"
is "one package of each" "$names" "$(cd "$debs" && printf '%s\n' *.deb | sed 's/_.*//' | tr '\n' ' ' | sed 's/ $//')"
deb() { echo "$debs/$1"_*.deb; }
# shellcheck disable=SC2046 # one file
field() { dpkg-deb -f $(deb "$1") "$2"; }

# ---- contents and fields --------------------------------------------------------------------------------------------

version=$(sed -nE 's/^project\(stepstash VERSION ([0-9.]+) .*/\1/p' "$project/CMakeLists.txt")
library=/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
{
  sed -e '/^#/d' -e "s,LIB/,$library/," -e "s,VERSION,$version," -e 's, \+, ,' "$here/contents.txt"
  (cd "$project/python" && find stepstash \( -name '*.py' -o -name py.typed \) \
    -printf 'python3-stepstash /usr/lib/python3/dist-packages/%p\n')
} | sort > "$scratch/expected"
for name in $names; do
  # shellcheck disable=SC2046
  dpkg-deb -c $(deb "$name") > "$scratch/list"
  grep -v '^d' "$scratch/list" | sed -E "s,^[^.]* \./,$name /,; s, -> .*,,"
  is "all of $name belongs to root" "" "$(grep -v ' root/root ' "$scratch/list" || true)" >&2
done | sort > "$scratch/got"
same "the packages have what contents.txt says" "$scratch/expected" "$scratch/got"

full=$(field stepstashd Version)
is "the version is the project's" "$version" "${full%%-*}"
for name in $names; do
  case $name in
    python3-stepstash) is "$name is for every architecture" all "$(field $name Architecture)" ;;
    *) is "$name is for this architecture" "$(dpkg --print-architecture)" "$(field "$name" Architecture)" ;;
  esac
done
is "the command depends on nothing" "" "$(field stepstash Depends)"
is "the library depends on the C library alone" "libc6" "$(field libstepstash0 Depends | sed 's/ (.*//')"
is "the development files depend on their library" "libstepstash0 (= $full)" "$(field libstepstash-dev Depends)"
is "Python's depends on a library that has the functions" "libstepstash0 (>= $version), python3:any (>= 3.9)" \
  "$(field python3-stepstash Depends)"
for needed in libsqlite3-0 libsystemd0 systemd; do
  [[ " $(field stepstashd Depends)," == *" $needed"[\ ,]* ]] || fail "stepstashd does not depend on $needed"
done
said "the daemon depends on the libraries that it loads"

for name in libstepstash0 libstepstash-dev stepstashd python3-stepstash; do
  # shellcheck disable=SC2046
  dpkg-deb -x $(deb "$name") "$scratch/files"
done
# shellcheck disable=SC2046
dpkg-deb -e $(deb libstepstash0) "$scratch/library"
# shellcheck disable=SC2046
dpkg-deb -e $(deb stepstashd) "$scratch/daemon"
is "the library is found by ldconfig" "activate-noawait ldconfig" "$(cat "$scratch/library/triggers")"
is "who links it depends on its package" "libstepstash 0 libstepstash0 (>= $version)" "$(cat "$scratch/library/shlibs")"
is "dpkg knows what is configuration" /etc/stepstash/stepstashd.conf "$(cat "$scratch/daemon/conffiles")"
is "the unit starts the daemon of the package" ExecStart=/usr/sbin/stepstashd \
  "$(grep ^ExecStart= "$scratch/files/usr/lib/systemd/system/stepstashd.service")"
for script in "$scratch"/daemon/p*; do dash -n "$script" || fail "$script is no POSIX shell"; done

# A program outside, in C, by what -dev has.
export PKG_CONFIG_PATH=$scratch/files$library/pkgconfig PKG_CONFIG_SYSROOT_DIR=$scratch/files
PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 pkg-config --cflags --libs stepstash > "$scratch/wanted"
read -ra wanted < "$scratch/wanted"
cc "$project/tests/install/consumer/consumer.c" "${wanted[@]}" -o "$scratch/consumer"
is "a program that is linked with it needs libstepstash.so.0" 1 \
  "$(readelf -d "$scratch/consumer" | grep -c 'NEEDED.*libstepstash\.so\.0')"

lintian --no-cfg --fail-on error,warning --tag-display-limit 0 "$debs"/*.deb 2>&1 | grep -v 'root privileges' > "$scratch/lintian" ||
  true
cat "$scratch/lintian"
is "lintian finds neither an error nor a warning" "" "$(grep '^[EW]:' "$scratch/lintian" || true)"

# ---- under a systemd -------------------------------------------------------------------------------------------------

# Whatever of ours lies where packages and daemons put something.
ours() { "$@" find /etc /run /usr/bin /usr/sbin /usr/lib /usr/share /usr/include /var/lib /var/cache /dev/shm -xdev -name '*stepstash*' 2> /dev/null | sort; }
as_builder() { inside runuser -u builder -- "$@"; }
stepstash() { as_builder stepstash "$@"; }
active() { inside systemctl is-active "$@" | tr '\n' ' '; }
inode() { inside stat -c %i /dev/shm/stepstash.d/segment; }
# dpkg_inside ARGUMENT...: without waiting for the disk, for the box is thrown away.
dpkg_inside() {
  inside dpkg --force-unsafe-io "$@" > "$scratch/dpkg" 2>&1 && return 0
  cat "$scratch/dpkg" >&2
  fail "dpkg $* failed"
}
install_all() { dpkg_inside -R -i /opt/stepstash-packages; }
install_daemon() { dpkg_inside -i "/opt/stepstash-packages/$(cd "$debs" && echo stepstashd_*.deb)"; }

boot() {
  local layer=$scratch/layer status=0
  mkdir -p "$layer/opt" "$layer/usr/sbin"
  cp -r "$debs" "$layer/opt/stepstash-packages"
  # Images of containers forbid that packages start services.
  printf '#!/bin/sh\nexit 0\n' > "$layer/usr/sbin/policy-rc.d"
  chmod 755 "$layer/usr/sbin/policy-rc.d"
  "$box_script" start "$box" "$layer" || status=$?
  return $status
}

under_systemd() {
  ours inside > "$scratch/before"
  install_all
  is "the socket is enabled and listens, the service waits for a client" "enabled active inactive" \
    "$(inside systemctl is-enabled stepstashd.socket) $(active stepstashd.socket stepstashd.service | sed 's/ $//')"
  inside useradd --no-create-home --groups stepstash builder
  # An hour between flushes: what is in memory is not in the database.
  inside sh -c "echo 'flush_interval = \"1h\"' >> /etc/stepstash/stepstashd.conf"
  echo first | stepstash set 7 report -
  is "a member of the group sets a value, and starts the daemon" active "$(property ActiveState)"
  is "nobody else is served" no "$(inside runuser -u nobody -- sh -c 'stepstash get 7 report > /dev/null 2>&1 && echo yes || echo no')"

  # A reader that holds a view in place, and a writer that never stops, while the packages are upgraded.
  local pid segment upgrading=$scratch/upgrading wrote reader writer
  pid=$(property MainPID)
  segment=$(inode)
  mkfifo "$scratch/go"
  as_builder python3 -c 'import stepstash, sys
view = stepstash.Client().get(7, "report")
print("attached", flush=True)
sys.stdin.read()
print(bytes(view.data).decode(), end="")' < "$scratch/go" > "$scratch/reader" &
  reader=$!
  exec 9> "$scratch/go"
  attached() { grep -q attached "$scratch/reader"; }
  await "the reader's view" attached
  touch "$upgrading"
  (
    n=0
    while [ -e "$upgrading" ]; do
      n=$((n + 1))
      echo $n | stepstash set 8 "n-$n" - || exit 1
      echo $n > "$scratch/wrote"
    done
  ) 9>&- &
  writer=$!
  set_some() { [ -s "$scratch/wrote" ]; }
  await "the writer's first value" set_some
  install_all
  rm "$upgrading"
  wait $writer || fail "a client was not served during the upgrade"
  wrote=$(cat "$scratch/wrote")
  said "clients were served during the upgrade ($wrote sets)"
  [ "$(property MainPID)" != "$pid" ] || fail "the upgrade did not restart the daemon"
  is "the upgrade restarts the daemon" active "$(property ActiveState)"
  is "with the same memory" "$segment" "$(inode)"
  is "and keeps the configuration" 'flush_interval = "1h"' "$(inside tail -n 1 /etc/stepstash/stepstashd.conf)"
  is "everything is there" "first $wrote" "$(stepstash get 7 report) $(stepstash list 8 --json | grep -o '"name"' | wc -l)"
  exec 9>&-
  wait $reader
  is "the view was valid all the time" first "$(tail -n 1 "$scratch/reader")"

  # By the administrator: an enabled service is one that a package would start, unless it asks what was running.
  inside systemctl enable stepstashd.service 2> /dev/null
  inside systemctl stop stepstashd.service 2> /dev/null
  install_daemon
  is "an upgrade does not start a daemon that was stopped" "active inactive" \
    "$(active stepstashd.socket stepstashd.service | sed 's/ $//')"
  inside systemctl disable --now stepstashd.socket 2> /dev/null
  install_daemon
  is "nor a socket that was disabled" "disabled inactive" \
    "$(inside systemctl is-enabled stepstashd.socket || true) $(active stepstashd.socket | sed 's/ $//')"
  inside systemctl enable --now stepstashd.socket 2> /dev/null
  is "it serves again" first "$(stepstash get 7 report)"

  # shellcheck disable=SC2086 # a list of words
  dpkg_inside -r $names
  is "a removal stops both" "inactive inactive" "$(active stepstashd.socket stepstashd.service | sed 's/ $//')"
  is "and keeps the data" "$segment 1" \
    "$(inode) $(inside sqlite3 -readonly /var/lib/stepstash/build_data.db 'select count(*) from build_data where buildid = 7')"
  install_all
  is "after another installation it is all there" first "$(stepstash get 7 report)"
  is "in the same memory" "$segment" "$(inode)"

  # shellcheck disable=SC2086
  dpkg_inside -P $names
  is "a purge stops both" "inactive inactive" "$(active stepstashd.socket stepstashd.service | sed 's/ $//')"
  ours inside > "$scratch/after"
  same "and leaves nothing" "$scratch/before" "$scratch/after"
  is "but the user" stepstash "$(inside getent passwd stepstash | cut -d: -f1)"
  "$box_script" stop "$box"
}

left_out=''
status=0
boot || status=$?
case $status in
  0) under_systemd ;;
  77) left_out='no systemd' ;;
  *) fail "systemd did not boot" ;;
esac

# ---- in a bare tree --------------------------------------------------------------------------------------------------

release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
mirror=$(host_mirror)
mkdir -p "$work/tree"
case $mirror in https:*) more=ca-certificates ;; *) more='' ;; esac
make_tree "$work/tree" "$release" "$mirror" $more || cannot "there is no bare tree, so nothing was installed in one"

# In namespaces of its own, so that nothing stays mounted: the tree, with what is changed in memory.
cat > "$scratch/in_tree" << 'END'
set -euo pipefail
scratch=$1 tree=$2 debs=$3
mount --make-rprivate /
mkdir -p "$scratch/overlay"
mount -t tmpfs tmpfs "$scratch/overlay"
mkdir "$scratch/overlay/upper" "$scratch/overlay/work" "$scratch/overlay/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$scratch/overlay/upper,workdir=$scratch/overlay/work" "$scratch/overlay/root" 2> /dev/null ||
  { echo "packages_test: overlayfs does not work here, so nothing was installed in a bare tree" >&2 && exit 77; }
root=$scratch/overlay/root
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir "$root/opt/packages"
cp "$debs"/*.deb "$root/opt/packages"
cp "$scratch/bare_tree" "$root/opt/bare_tree"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash /opt/bare_tree
END
{
  declare -f said fail is same await
  echo "names='$names'"
  cat << 'END'
set -euo pipefail
ours() { find / -xdev -name '*stepstash*' -not -path '/opt/*' | sort; find /run /dev/shm -name '*stepstash*'; }
ours > /opt/before
apt-get -q update > /opt/log 2>&1 || { cat /opt/log && exit 77; }
dpkg -i /opt/packages/*.deb > /opt/log 2>&1 && fail "the bare tree misses nothing"
apt-get -q -y -o DPkg::Options::=--force-unsafe-io --no-install-recommends -f install > /opt/log 2>&1 || { cat /opt/log && fail "apt-get -f install failed"; }
for name in $names; do is "$name is installed" ii "$(dpkg-query -W -f '${db:Status-Abbrev}' $name | tr -d ' ')"; done
apt-get -q check > /dev/null
is "there is a user" "/var/lib/stepstash" "$(getent passwd stepstash | cut -d: -f6)"
is "who has a directory" "700 stepstash" "$(stat -c '%a %U' /var/lib/stepstash)"

useradd --no-create-home --groups stepstash builder
runuser -u stepstash -- sh -c 'umask 077; RUNTIME_DIRECTORY=/run/stepstash STATE_DIRECTORY=/var/lib/stepstash exec stepstashd --config /etc/stepstash/stepstashd.conf --socket-group stepstash' > /opt/daemon 2>&1 &
trap '[ $? -eq 0 ] || cat /opt/daemon' EXIT
answers() { runuser -u builder -- stepstash stats > /dev/null 2>&1; }
await "an answer of the daemon" answers
echo bare | runuser -u builder -- stepstash set 7 report -
is "the daemon has the libraries that it needs" bare "$(runuser -u builder -- stepstash get 7 report)"
is "so has the Python module" bare "$(runuser -u builder -- python3 -c 'import stepstash
with stepstash.Client().get(7, "report") as view: print(bytes(view.data).decode(), end="")')"
is "Buildbot finds its plugins" "SetBuildData StepstashService" "$(python3 -c 'import importlib.metadata
points = importlib.metadata.distribution("stepstash").entry_points
print(*sorted(p.name for p in points if p.name in ("StepstashService", "SetBuildData")))')"
kill $(pidof stepstashd)
wait

dpkg -r $names > /opt/log 2>&1 || { cat /opt/log && fail "dpkg -r failed"; }
is "a removal keeps the data and the configuration" "" \
  "$(ls /var/lib/stepstash/build_data.db /dev/shm/stepstash.d/segment /etc/stepstash/stepstashd.conf 2>&1 > /dev/null)"
dpkg -P $names > /opt/log 2>&1 || { cat /opt/log && fail "dpkg -P failed"; }
ours > /opt/after
same "a purge leaves nothing" /opt/before /opt/after
END
} > "$scratch/bare_tree"
status=0
unshare --mount --pid --fork --kill-child --propagation private bash "$scratch/in_tree" "$scratch" "$work/tree" "$debs" || status=$?
[ $status -eq 0 ] || exit $status
[ -z "$left_out" ] || cannot "left out: $left_out"
