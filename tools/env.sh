#!/usr/bin/env bash
# Prints the path of a Python that imports torch, torchvision and detectron2, and creates one if
# there is none:
#   python=$(bash tools/env.sh)
# An active environment that imports the three is used as it is and never modified. Otherwise the
# answer is .venv in the repository, created with uv where it is installed and with pip elsewhere.
# .venv is complete once it holds the marker, which is written last. .venv.lock is held meanwhile
# and says "unfinished" until then. Progress and errors go to stderr. An error is one line.
#   RPE_D2_DISK_GB   free space that the first installation asks for, in GB
#   RPE_D2_PYTHON    the Python that .venv is created with, e.g. python3.10
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
lock=$root/.venv.lock
marker=$venv/rpe_d2.complete
log=$venv/install.log
# Measured: 5.9 GB for .venv, 2 of downloads while they are unpacked, 2.5 in pip's cache.
disk_gb=${RPE_D2_DISK_GB:-12}
modules="cv2 fvcore iopath matplotlib numpy PIL psutil pycocotools scipy tabulate tensorboard"
modules="$modules skimage tifffile tqdm yaml"
cd "$root"
PATH=${PATH//"$venv/bin:"/} # .venv counts neither as an active environment nor as its own base
uv=$(command -v uv || true)
# pip's default of 5 for each package turns a lost connection into minutes of waiting.
export PIP_RETRIES=${PIP_RETRIES:-2}

say() { echo "[env] $*" >&2; }
die() {
  echo "error: $*" >&2
  exit 1
}

active_python() {
  local name
  for name in python python3; do
    if "$name" -c 'import sys
assert sys.version_info >= (3, 10)
from detectron2.config import get_cfg
import torch, torchvision' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
}

base_python() {
  local name version found=none usable
  usable="import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))"
  [ -n "$uv" ] || usable="import ensurepip; $usable" # a package of its own on Debian
  local names="python3.13 python3.12 python3.11 python3.10 python3 python"
  for name in ${RPE_D2_PYTHON:-$names}; do
    if "$name" -c "$usable" >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
    if version=$("$name" -V 2>/dev/null); then found=$version; fi
  done
  die "Python 3.10, 3.11, 3.12 or 3.13 with venv is needed, found: $found; install one" \
    "(apt install python3.12-venv, conda create -n rpe python=3.12, uv python install 3.12)," \
    "put it on the PATH and run again"
}

lacking() { # lists the modules that a Python does not find
  # shellcheck disable=SC2086  # a list of words
  "$1" -c 'import sys
from importlib.util import find_spec
print(*[name for name in sys.argv[1:] if find_spec(name) is None])' $modules
}

# Scripts in .venv contain absolute paths.
origin() { echo "$root $("$venv/bin/python" -V 2>/dev/null)"; }
fingerprint() {
  origin
  cat pyproject.toml setup.py tools/env.sh tools/install_detectron2.py | cksum
}
complete() { [ -x "$venv/bin/python" ] && [ "$(cat "$marker" 2>/dev/null)" = "$(fingerprint)" ]; }

free_gb() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }

fail() { # reports in one line why the step whose output is in the log has failed
  if grep -qi 'no space left' "$log" || [ "$(free_gb "$root")" -lt 1 ]; then
    die "the disk is full: free $disk_gb GB for $venv and pip's cache, then run again"
  elif grep -qiE 'name resolution|resolve|timed out|unreachable|connection|versions: none' \
    "$log"; then
    die "the package index cannot be reached: check the network (or the proxy and mirror in pip's" \
      "settings) and run again; details in $log"
  fi
  local reason
  reason=$(grep -i error "$log" | tail -n 1) || reason=$(tail -n 1 "$log")
  die "${reason#*rror: }; details in $log"
}

pip_install() { # writes pip's warnings and errors to the log and its progress to the screen
  : >"$log"
  if [ -n "$uv" ]; then
    uv pip install --python "$venv/bin/python" "$@" 2> >(tee "$log" >&2) || fail
  else
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >&2 2>"$log" || fail
  fi
}

create() {
  local free
  free=$(free_gb "$root")
  [ "$free" -ge "$disk_gb" ] || die "$root has $free GB free, the environment needs $disk_gb:" \
    "free some space (RPE_D2_DISK_GB sets another bound) and run again"
  echo unfinished >"$lock"
  rm -rf "$venv"
  say "creating $venv with $("$base" -V)${uv:+ and uv}: about 6 GB, one to five minutes"
  mkdir "$venv"
  local make=(uv venv --quiet --allow-existing --seed --python "$base" "$venv")
  if [ -n "$uv" ] && ! "${make[@]}" >"$log" 2>&1; then
    say "uv cannot create it: using pip"
    uv=
  fi
  [ -n "$uv" ] || "$base" -m venv "$venv" >"$log" 2>&1 || fail
}

install() {
  export TMPDIR=$venv/tmp # so that an interrupted run leaves its downloads in .venv, not in /tmp
  mkdir -p "$TMPDIR"
  # Detectron2's model_zoo imports pkg_resources, which setuptools 82 has dropped. Without a network
  # this command fails at once.
  "$venv/bin/python" -m pip install -q --retries 0 --timeout 20 'setuptools>=77,<82' >"$log" 2>&1 \
    || fail
  say "torch and torchvision"
  pip_install 'torch>=2.6' torchvision # one command, so that the two match
  say "Detectron2"
  : >"$log"
  "$venv/bin/python" tools/install_detectron2.py >&2 2>"$log" || fail
  say "rpe_d2 and its dependencies"
  pip_install --quiet --no-build-isolation -e '.[dev,docs]'
  # shellcheck disable=SC2086  # a list of words
  if ! "$venv/bin/python" -c 'import importlib, sys, torch, torchvision, detectron2.config
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
for name in sys.argv[1:]: importlib.import_module(name)' $modules >"$log" 2>&1; then
    echo unfinished >"$lock"
    die "the new environment does not work ($(tail -n 1 "$log")): run again to recreate it;" \
      "details in $log"
  fi
  rm -rf "$TMPDIR"
  fingerprint >"$marker"
  : >"$lock"
}

python=$(active_python)
if [ -n "$python" ]; then
  missing=$(lacking "$python")
  [ -z "$missing" ] || die "the active environment ($python) lacks $missing:" \
    "install them there, or deactivate it and run again"
  say "using the active environment: $python"
  echo "$python"
  exit
fi

unset PYTHONPATH PYTHONHOME
if ! complete; then
  base=$(base_python)
  exec 9>>"$lock"
  # The lock belongs to the open file 9, which Python shares with this shell, and outlives Python.
  take='import fcntl, sys; fcntl.flock(9, fcntl.LOCK_EX | int(sys.argv[1]) * fcntl.LOCK_NB)'
  if ! "$base" -c "$take" 1 2>/dev/null; then
    say "another run is creating $venv: waiting for it"
    "$base" -c "$take" 0
  fi
  if ! complete; then
    if [ -s "$lock" ]; then
      say "an earlier run was interrupted: starting over"
      create
    elif [ ! -e "$marker" ]; then
      [ ! -e "$venv" ] || die "$venv was not created by this script: activate it if it has torch," \
        "torchvision and detectron2, else remove it, and run again"
      create
    elif [ "$(head -n 1 "$marker")" != "$(origin)" ]; then
      say "$venv belongs to another folder or Python: recreating it"
      create
    else
      say "the packaging or the installation changed: bringing $venv up to date"
    fi
    install
  fi
fi
say "using $venv"
echo "$venv/bin/python"
