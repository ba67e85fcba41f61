#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A real systemd as process 1 of namespaces of its own, over a throw-away copy of this machine's file system, so that
# units can be installed, started and killed without touching the machine. Root only; needs overlayfs and cgroup v2.
#
#   systemd_box.sh start BOX [LAYER]   boots; files in the directory LAYER lie over those of the machine
#   systemd_box.sh run BOX COMMAND...  runs a command inside, as root
#   systemd_box.sh stop BOX            shuts down and removes BOX
#
# `start` exits 77 when this machine cannot do it (with the reason), 1 when it should have worked.
set -euo pipefail

cannot() {
  echo "systemd_box: $*" >&2
  exit 77
}

# The rest of the boot, as the first process of the new namespaces; becomes systemd.
inside() {
  local box=$1 layer=$2
  mount --make-rprivate /
  mkdir -p "$box/upper" "$box/work" "$box/root"
  mount -t overlay overlay -o "lowerdir=${layer:+$layer:}/,upperdir=$box/upper,workdir=$box/work" "$box/root"
  cd "$box/root"

  mount -t proc proc proc
  # systemd leaves sysctls and the like alone where it cannot write them: they belong to the machine.
  mount --bind proc/sys proc/sys
  mount -o remount,bind,ro proc/sys
  mount -t sysfs -o ro sysfs sys
  mount -t cgroup2 -o nsdelegate cgroup2 sys/fs/cgroup
  mount -t tmpfs -o mode=0755 tmpfs run
  mount -t tmpfs -o mode=1777 tmpfs tmp
  mount -t tmpfs -o mode=0755 tmpfs dev
  local node
  for node in null zero full random urandom tty; do
    : > "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
  done
  mkdir dev/shm dev/pts dev/mqueue
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  ln -s fd/0 dev/stdin
  ln -s fd/1 dev/stdout
  ln -s fd/2 dev/stderr

  # A boot that ends with the basic system and a journal: none of the machine's own services and timers.
  local units=etc/systemd/system unit
  mkdir -p $units etc/systemd/journald.conf.d
  printf '%s\n' '[Unit]' 'Requires=sysinit.target systemd-journald.service' 'Wants=sockets.target' \
    'After=sysinit.target systemd-journald.service sockets.target' 'AllowIsolate=yes' > $units/box.target
  for unit in systemd-{firstboot,logind,modules-load,networkd,random-seed,timesyncd,udev-trigger,udevd,update-utmp}.service \
    dev-hugepages.mount sys-kernel-{config,debug,tracing}.mount; do
    ln -sfn /dev/null "$units/$unit"
  done
  printf '%s\n' '[Journal]' 'Storage=volatile' 'RateLimitBurst=0' > etc/systemd/journald.conf.d/box.conf

  mkdir old
  pivot_root . old
  umount -l /old
  rmdir /old
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 container=box \
    /lib/systemd/systemd --system --unit=box.target --show-status=0 --log-target=journal-or-kmsg
}

start() {
  local box=$1 layer=${2:-}
  [ "$(id -u)" = 0 ] || cannot "only root can boot a systemd"
  [ -x /lib/systemd/systemd ] || cannot "systemd is not installed"
  local tool
  for tool in unshare nsenter pivot_root setsid; do
    command -v $tool > /dev/null || cannot "$tool is not installed"
  done
  mkdir -p "$box"
  # overlayfs refuses an upper layer that is an overlay itself, which / is in most containers.
  mount -t tmpfs -o mode=0755 tmpfs "$box" 2> /dev/null || cannot "may not mount here"
  trap 'umount -l "$box" 2> /dev/null || true' EXIT
  mkdir "$box/probe" "$box/probe.work" "$box/probe.root"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$box/probe,workdir=$box/probe.work" "$box/probe.root" 2> /dev/null ||
    cannot "overlayfs does not work here"
  umount "$box/probe.root"
  # Changing the root takes one that is a mount point: a plain chroot is not.
  mountpoint -q / || cannot "/ is not a mount point here (a chroot?)"

  # A layer below / would lie in both lower layers, which overlayfs refuses.
  if [ -n "$layer" ]; then
    cp -a "$layer" "$box/layer"
    layer=$box/layer
  fi

  local cgroups
  cgroups=$(awk '/ - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
  if [ -z "$cgroups" ]; then
    cgroups=$box/cgroups
    mkdir "$cgroups"
    mount -t cgroup2 cgroup2 "$cgroups" 2> /dev/null || cannot "there is no cgroup v2 here"
  fi
  local cgroup=$cgroups/stepstash-box-$$
  mkdir "$cgroup" 2> /dev/null || cannot "may not make a cgroup"
  echo "$cgroup" > "$box/cgroup"

  (
    echo "$BASHPID" > "$cgroup/cgroup.procs"
    exec setsid unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child "$(readlink -f "$0")" \
      inside "$box" "$layer"
  ) > "$box/log" 2>&1 < /dev/null &
  local outer=$! first='' state='' deadline=$((SECONDS + 60))
  while [ $SECONDS -lt $deadline ]; do
    if ! kill -0 $outer 2> /dev/null; then
      cat "$box/log" >&2
      rmdir "$cgroup" || true
      exit 1
    fi
    # Again each time: before it is unshare(1), the shell has had children, too.
    first=$(cat /proc/$outer/task/$outer/children 2> /dev/null | tr -d ' ' || true)
    if [ -n "$first" ] && [ "$(cat "/proc/$first/comm" 2> /dev/null)" = systemd ]; then
      echo "$first" > "$box/pid"
      state=$(run "$box" systemctl is-system-running 2> /dev/null || true)
      case $state in
        running | degraded)
          trap - EXIT
          run "$box" systemctl --failed --no-legend >&2
          return 0
          ;;
      esac
    fi
    sleep 0.05 # between two looks; the deadline is above
  done
  echo "systemd_box: not up after 60 s (${state:-no systemd})" >&2
  cat "$box/log" >&2
  kill -KILL $outer
  exit 1
}

run() {
  local box=$1
  shift
  # --root, too: where this machine is itself a chroot, the namespace begins above it.
  nsenter --target "$(cat "$box/pid")" --all --root --wd -- "$@"
}

stop() {
  local box=$1 first cgroup deadline=$((SECONDS + 20))
  [ -e "$box/pid" ] || return 0
  first=$(cat "$box/pid")
  cgroup=$(cat "$box/cgroup")
  kill -s RTMIN+3 "$first" 2> /dev/null || true # halt
  while kill -0 "$first" 2> /dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.05; done
  kill -KILL "$first" 2> /dev/null || true
  while kill -0 "$first" 2> /dev/null; do sleep 0.05; done
  find "$cgroup" -depth -type d -exec rmdir {} \; 2> /dev/null || true
  umount -l "$box/cgroups" 2> /dev/null || true
  umount -l "$box"
  rmdir "$box" 2> /dev/null || true
}

case ${1:-} in
  start | run | stop | inside) "$@" ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 64 ;;
esac
