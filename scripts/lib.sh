# SPDX-License-Identifier: Apache-2.0
# Shell functions that quickstart, test and the scripts here share. Sourced by bash; prints to the caller's stdout. The
# caller's working directory is the project's root, but for the trees.

# missing_packages GROUP...: those of the groups in scripts/packages.txt that are not installed, one per line.
missing_packages() {
  local package group rest release
  release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  while read -r package group rest; do
    case $package in
      '' | '#'*) continue ;;
      *@"$release") package=${package%@*} ;;
      *@*) continue ;;
    esac
    case " $* " in *" $group "*) ;; *) continue ;; esac
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || echo "$package"
  done < scripts/packages.txt | awk '!seen[$0]++' # one may be in several groups
}

# install_packages GROUP...: installs what is missing, as root or through sudo; says what to do when it can do neither.
install_packages() {
  if ! command -v dpkg-query > /dev/null; then
    echo "This is no Debian: please see that what scripts/packages.txt names is installed." >&2
    return 0
  fi
  local missing as_root=()
  missing=$(missing_packages "$@")
  if [ -z "$missing" ]; then
    echo "packages: all there"
    return 0
  fi
  missing=$(tr '\n' ' ' <<< "$missing")
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo > /dev/null || ! sudo -n true 2> /dev/null; then
      printf 'These packages are missing and this user cannot install them; please run, as root:\n\n' >&2
      printf '  apt-get update && apt-get install --no-install-recommends %s\n\n' "$missing" >&2
      return 69
    fi
    as_root=(sudo)
  fi
  echo "packages: installing $missing"
  local log
  log=$(mktemp)
  # shellcheck disable=SC2086 # a list of words
  if ! { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing; } \
    > "$log" 2>&1 < /dev/null; then
    cat "$log" >&2
    rm -f "$log"
    echo "installing the packages failed; the output is above" >&2
    return 69
  fi
  rm -f "$log"
}

# quietly WHAT COMMAND...: runs it; shows its output only when it fails.
quietly() {
  local what=$1 log status=0
  shift
  log=$(mktemp)
  "$@" > "$log" 2>&1 < /dev/null || status=$?
  if [ $status -ne 0 ]; then
    cat "$log" >&2
    echo "$what failed (exit $status); the output is above" >&2
  fi
  rm -f "$log"
  return $status
}

# build_preset PRESET [TARGET]: configures and builds into build/PRESET; everything, or one target.
build_preset() {
  quietly "configuring build/$1" cmake --preset "$1" &&
    quietly "building build/$1" cmake --build --preset "$1" --target "${2:-all}"
}

# host_mirror: the first address under which apt here finds a Debian, in either format of its sources.
host_mirror() {
  local mirror
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null |
    sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p; s/^URIs: *([^ ]+).*/\1/p' | grep -E '/debian/?$' | head -1) || true
  echo "${mirror:-http://deb.debian.org/debian}"
}

# make_tree TREE RELEASE MIRROR [PACKAGE,...]: a minimal Debian in TREE, unless it is there already, that finds the network
# as this machine does. One that was left half made is completed.
make_tree() {
  local tree=$1 release=$2 mirror=$3 log
  if [ ! -e "$tree/etc/stepstash-tree-complete" ]; then
    log=$(mktemp)
    if ! debootstrap --variant=minbase ${4:+--include="$4"} "$release" "$tree" "$mirror" > "$log" 2>&1; then
      tail -n 20 "$log" "$tree/debootstrap/debootstrap.log" >&2 || true
      rm -f "$log"
      echo "debootstrap failed; its output is above" >&2
      return 1
    fi
    rm -f "$log"
    touch "$tree/etc/stepstash-tree-complete"
  fi
  # How names are found, and how apt is told to fetch.
  local file
  for file in /etc/resolv.conf /etc/hosts; do
    if [ -e $file ]; then cp -L --remove-destination $file "$tree$file"; fi
  done
  printf 'deb %s %s main\n' "$mirror" "$release" > "$tree/etc/apt/sources.list"
  apt-config dump --no-empty Acquire > "$tree/etc/apt/apt.conf.d/90host" 2> /dev/null || true
}
