#!/usr/bin/env bash
# Prints the path of a Python that imports torch, torchvision and detectron2, after making one if need be:
#   python=$(bash tools/env.sh)
# An active environment that imports the three is used as it is, never modified. Otherwise the answer is .venv in the
# repository, made with uv where it is installed, else with pip. .venv is finished once it holds the marker, which is written last;
# .venv.lock is held meanwhile, and says "unfinished" until then. Progress and errors go to stderr; an error is one line.
#   RPE_D2_DISK_GB   free space that is asked for before the first installation, in GB
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
lock=$root/.venv.lock
marker=$venv/rpe_d2.complete
log=$venv/install.log
disk_gb=${RPE_D2_DISK_GB:-12} # measured: 5.9 for .venv, 2 of downloads while they are unpacked, 2.5 in pip's cache
modules="cv2 fvcore iopath matplotlib numpy PIL pycocotools scipy tabulate tensorboard tqdm yaml"
cd "$root"
PATH=${PATH//"$venv/bin:"/} # .venv is neither a borrowed environment nor made from itself
uv=$(command -v uv || true)
export PIP_RETRIES=${PIP_RETRIES:-2} # pip's own 5, for each package, make minutes of a lost connection

say() { echo "[env] $*" >&2; }
die() {
  echo "error: $*" >&2
  exit 1
}

active_python() {
  local name
  for name in python python3; do
    if "$name" -c 'import sys
assert sys.version_info >= (3, 11)
from detectron2.config import get_cfg
import torch, torchvision' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
}

base_python() {
  local name version found=none usable="import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
  [ -n "$uv" ] || usable="import ensurepip; $usable" # Debian ships it apart, as python3-venv
  for name in python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c "$usable" >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
    if version=$("$name" -V 2>/dev/null); then found=$version; fi
  done
  die "Python 3.11, 3.12 or 3.13 with venv is needed, found: $found; install one (apt install python3.12-venv, conda create -n rpe python=3.12, uv python install 3.12), put it on the PATH and run again"
}

lacking() { # modules that a Python does not find
  # shellcheck disable=SC2086  # a list of words
  "$1" -c 'import sys
from importlib.util import find_spec
print(*[name for name in sys.argv[1:] if find_spec(name) is None])' $modules
}

origin() { echo "$root $("$venv/bin/python" -V 2>/dev/null)"; } # scripts in .venv hold absolute paths
fingerprint() {
  origin
  cat setup.py tools/env.sh tools/install_detectron2.py | cksum
}
complete() { [ -x "$venv/bin/python" ] && [ "$(cat "$marker" 2>/dev/null)" = "$(fingerprint)" ]; }

free_gb() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }

fail() { # one line for what the log of the failed step says
  if grep -qi 'no space left' "$log" || [ "$(free_gb "$root")" -lt 1 ]; then
    die "the disk is full: free $disk_gb GB for $venv and pip's cache, then run again"
  elif grep -qiE 'name resolution|resolve|timed out|unreachable|connection|versions: none' "$log"; then
    die "the package index cannot be reached: check the network (or the proxy and mirror in pip's settings) and run again; details in $log"
  fi
  local reason
  reason=$(grep -i error "$log" | tail -n 1) || reason=$(tail -n 1 "$log")
  die "${reason#*rror: }; details in $log"
}

pip_install() { # pip's warnings and errors go to the log, its progress to the screen
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
  [ "$free" -ge "$disk_gb" ] || die "$root has $free GB free, the environment needs $disk_gb: free some space (RPE_D2_DISK_GB sets another bound) and run again"
  echo unfinished >"$lock"
  rm -rf "$venv"
  say "making $venv with $("$base" -V)${uv:+ and uv}: about 6 GB, one to five minutes"
  mkdir "$venv"
  if [ -n "$uv" ] && ! uv venv --quiet --allow-existing --seed --python "$base" "$venv" >"$log" 2>&1; then
    say "uv does not get on: using pip"
    uv=
  fi
  [ -n "$uv" ] || "$base" -m venv "$venv" >"$log" 2>&1 || fail
}

install() {
  export TMPDIR=$venv/tmp # downloads of an interrupted run go with .venv instead of filling /tmp
  mkdir -p "$TMPDIR"
  # Also finds out at once, in one line, that there is no network.
  "$venv/bin/python" -m pip install -q --retries 0 --timeout 20 'setuptools>=70.1' >"$log" 2>&1 || fail
  say "torch and torchvision"
  pip_install 'torch>=2.6' torchvision # one command: a matching pair
  say "Detectron2"
  : >"$log"
  "$venv/bin/python" tools/install_detectron2.py >&2 2>"$log" || fail
  say "rpe_d2 and what it needs"
  pip_install --quiet --no-build-isolation -e '.[dev]'
  # shellcheck disable=SC2086  # a list of words
  if ! "$venv/bin/python" -c 'import importlib, sys, torch, torchvision, detectron2.config
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
for name in sys.argv[1:]: importlib.import_module(name)' $modules >"$log" 2>&1; then
    echo unfinished >"$lock"
    die "the new environment does not work ($(tail -n 1 "$log")): run again to make it anew; details in $log"
  fi
  rm -rf "$TMPDIR"
  fingerprint >"$marker"
  : >"$lock"
}

python=$(active_python)
if [ -n "$python" ]; then
  missing=$(lacking "$python")
  [ -z "$missing" ] || die "the active environment ($python) lacks $missing: install them there, or deactivate it and run again"
  say "using the active environment: $python"
  echo "$python"
  exit
fi

unset PYTHONPATH PYTHONHOME
if ! complete; then
  base=$(base_python)
  exec 9>>"$lock"
  take='import fcntl, sys; fcntl.flock(9, fcntl.LOCK_EX | int(sys.argv[1]) * fcntl.LOCK_NB)' # for this shell: it shares 9
  if ! "$base" -c "$take" 1 2>/dev/null; then
    say "another run is making $venv: waiting for it"
    "$base" -c "$take" 0
  fi
  if ! complete; then
    if [ -s "$lock" ]; then
      say "an earlier run was interrupted: starting over"
      create
    elif [ ! -e "$marker" ]; then
      [ ! -e "$venv" ] || die "$venv was not made by this script: activate it if it has torch, torchvision and detectron2, else remove it, and run again"
      create
    elif [ "$(head -n 1 "$marker")" != "$(origin)" ]; then
      say "$venv belongs to another folder or Python: making it anew"
      create
    else
      say "setup.py or the installation changed: bringing $venv up to date"
    fi
    install
  fi
fi
say "using $venv"
echo "$venv/bin/python"
