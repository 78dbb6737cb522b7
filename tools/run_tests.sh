#!/usr/bin/env bash
# Runs the tests, after creating the environment if it is missing.
# usage: bash tools/run_tests.sh [pytest arguments]      e.g. -m slow, -m release, or tests/ops -x
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/env.sh")
if ! "$python" -c 'import pytest' 2>/dev/null; then
  echo "error: $python has no pytest: install pytest there, or deactivate that environment and" \
    "run again" >&2
  exit 1
fi
cd "$root"
# A borrowed environment has no rpe_d2 installed.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Up to four processes with one thread each; all tests of a file run in the same process.
cores=$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')
if [ "$cores" -gt 1 ] && "$python" -c 'import xdist' 2>/dev/null; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  set -- -n "$cores" --dist loadfile "$@"
fi
exec "$python" -m pytest "$@"
