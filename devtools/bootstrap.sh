#!/bin/bash
# Makes .venv, and installs what the system lacks for it. Where all of it is there already, it does nothing.
#   PYTHON=python3.13 bash devtools/bootstrap.sh [demo|test|count]
# System packages come from apt, where that and root or sudo are there; elsewhere a line for each missing thing
# says what it is and how to get it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/usr/local/sbin
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/set-up
purpose=${1:-}

die() { printf '%s\n' "$@" >&2; exit 1; }
has() { command -v "$1" > /dev/null; }
python_says() { "$python" -c "$1" 2> /dev/null; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { "$@" > "$log" 2>&1 || { cat "$log" >&2; die "failed, as said above: $*"; }; }

has_venv() { python_says 'import ensurepip, venv'; }
has_headers() { python_says 'import sysconfig; open(sysconfig.get_path("include") + "/Python.h")'; }
has_compiler() { has cc || has gcc; }
has_client_library() {
  local name
  for name in libmariadb mariadb mysqlclient perconaserverclient; do
    pkg-config --exists $name 2> /dev/null && return
  done
  return 1
}
has_server() { [ -n "${MYSQLPOOL_SERVER_PROGRAM:-}${MYSQLPOOL_SERVER_URL:-}" ] || { has mariadbd && has mariadb-install-db; }; }
has_load_tool() { has wrk; }
has_counter() { has valgrind; }
has_crypt() { [ -e /usr/include/crypt.h ]; }
has_gis_libraries() { python_says 'from ctypes.util import find_library as find; assert find("gdal") and find("geos_c")'; }
can_install() { has apt-get && { [ "$(id -u)" = 0 ] || has sudo; }; }

need() { # CHECK "PACKAGE ..." WHAT [OTHERWISE]
  "$1" && return
  packages+=($2)
  missing+=("missing: $3: apt-get install $2${4:+, or $4}")
}

want() { # The same, for what can be done without where it can't be installed
  can_install || return 0
  need "$@"
}

look_for_what_is_missing() {
  missing=() packages=()
  if [ -z "$set_up" ]; then
    need has_venv "$debian_python-venv" "the modules venv and ensurepip of $python"
    need has_headers "$debian_python-dev" "the C headers of $python (Python.h)"
    need has_compiler "gcc libc6-dev" "a C compiler"
    want has_crypt libcrypt-dev "libcrypt, which uWSGI is linked with"
    need has_client_library "pkg-config libmariadb-dev" "MariaDB's or MySQL's client library, as pkg-config finds it"
  fi
  need has_server "mariadb-server-core mariadb-client" "a database server" \
    "name one: SERVER=/path/to/mysqld or SERVER_URL=mysql://user:password@host:port"
  [ "$purpose" != demo ] || need has_load_tool wrk "wrk, which makes the load of the demo"
  [ "$purpose" != count ] || need has_counter "valgrind libc6-dbg" "valgrind, which counts instructions"
  [ "$purpose" != test ] || want has_gis_libraries gdal-bin "GDAL and GEOS, which GeoDjango loads"
}

install_what_is_missing() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  can_install || die "${missing[@]}"
  echo "Installing ${packages[*]}"
  quietly "${as_root[@]}" apt-get --quiet update
  quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get --quiet --yes --no-install-recommends install "${packages[@]}"
  look_for_what_is_missing
  [ ${#missing[@]} = 0 ] || die "${missing[@]}"
}

make_venv() {
  echo "Setting up $venv with $("$python" --version), which takes a minute or two"
  rm -f $stamp
  quietly "$python" -m venv --clear $venv
  quietly $venv/bin/python -m pip install --upgrade pip
  quietly $venv/bin/python -m pip install --editable . --group dev
  echo "$identity" > $stamp
}

has "$python" || die "missing: $python: apt-get install python3, or name another one: make ... PYTHON=python3.13"
python_says 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  die "$("$python" --version) is too old, 3.10 is the oldest that will do: make ... PYTHON=python3.13"

identity=$(python_says 'import sys; print(sys.executable, *sys.version_info[:2])' && cat pyproject.toml "$0" | sha256sum)
set_up=$([ ! -e $stamp ] || [ "$identity" != "$(cat $stamp)" ] || echo yes)
# Debian's other Pythons have their headers in packages of their own: python3.13-dev.
debian_python=$(basename "$(python_says 'import sys; print(sys.executable)')")
case $debian_python in python3 | python3.*) ;; *) debian_python=python3 ;; esac

look_for_what_is_missing
[ ${#missing[@]} = 0 ] || install_what_is_missing
[ -n "$set_up" ] || make_venv
