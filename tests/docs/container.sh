#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Stands for `docker run` and `podman run`, as far as docs/ci.md uses them: namespaces of its own, a root file system of
# its own, and of the machine what --volume names.
#   container.sh run [OPTION]... IMAGE COMMAND...
# The image, whatever its name, is this machine's /usr, and $CONTAINER_PROGRAMS in /opt/bin. There is no /dev, so no
# /dev/shm either; /tmp is the container's own. Started by root it is Docker: no user namespace, --user and --group-add are
# numbers. Started by anybody else it is a rootless Podman: a user namespace in which root is that user. Podman drops
# the other groups there; only root could do so here, so --group-add keep-groups is demanded.
# Exit status 125: wrong options, as with both; 126: this machine cannot do it.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "container.sh: $2" >&2
  exit "$1"
}

# The first process of the new namespaces: makes the root file system and becomes the command.
inside() {
  local root=$CONTAINER_ROOT volume from to mode link
  mount --make-rprivate /
  mount -t tmpfs -o mode=0755 tmpfs "$root"
  cd "$root"
  mkdir -p usr opt/bin proc old
  mkdir -m 1777 tmp
  mount --rbind /usr usr
  for link in bin sbin lib lib32 lib64 libx32; do
    if [ -L /$link ]; then cp -P /$link .; fi
  done
  cp -r "$CONTAINER_PROGRAMS"/* opt/bin
  for volume in "${volumes[@]}"; do
    IFS=: read -r from to mode <<< "$volume"
    mkdir -p "$(dirname ".$to")"
    if [ -d "$from" ]; then mkdir ".$to"; else touch ".$to"; fi
    mount --bind "$from" ".$to"
    if [ "$mode" = ro ]; then mount -o remount,bind,ro ".$to"; fi
  done
  mount -t proc proc proc
  pivot_root . old
  umount -l /old
  rmdir /old
  local clean=(env -i PATH=/opt/bin:/usr/bin:/usr/sbin HOME=/ "${variables[@]}")
  if [ -n "$user" ]; then
    local as=(setpriv --reuid "${user%:*}" --regid "${user#*:}" "${groups[@]}" --bounding-set=-all --no-new-privs)
    exec "${as[@]}" "${clean[@]}" "$@"
  fi
  exec "${clean[@]}" "$@"
}

[ "${1-}" = run ] || fail 125 "only run"
call=("$@")
shift
volumes=() variables=() user='' group='' groups=(--clear-groups)
while [ $# -gt 0 ]; do
  case $1 in
    --rm) shift ;;
    -i | --interactive) shift ;;
    --volume) volumes+=("$2") && shift 2 ;;
    --env) variables+=("$2=${!2}") && shift 2 ;;
    --user) user=$2 && shift 2 ;;
    --group-add) group=$2 && shift 2 ;;
    -*) fail 125 "no option $1" ;;
    *) break ;;
  esac
done
[ $# -ge 2 ] || fail 125 "no command"
shift # the image

if [ -n "${CONTAINER_INSIDE-}" ]; then
  [ -z "$group" ] || groups=(--groups "$group")
  inside "$@"
fi
namespaces=(--mount --pid --fork --ipc --uts --net --cgroup --kill-child)
if [ "$(id -u)" != 0 ]; then
  [ "$group" = keep-groups ] || fail 125 "a rootless container without --group-add keep-groups"
  [ -z "$user" ] || fail 125 "no --user in a rootless container here"
  namespaces+=(--user --map-root-user)
  unshare "${namespaces[@]}" mount -t proc proc /proc || fail 126 "may not make namespaces here"
elif [[ ! $user$group =~ ^[0-9:]*$ ]]; then
  fail 125 "--user and --group-add are numbers: the image knows no names"
fi
CONTAINER_ROOT=$(mktemp -d "${TMPDIR:-/tmp}/stepstash-container.XXXXXX")
trap 'rmdir "$CONTAINER_ROOT"' EXIT
export CONTAINER_ROOT
CONTAINER_INSIDE=yes unshare "${namespaces[@]}" bash "$0" "${call[@]}"
