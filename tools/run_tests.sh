#!/usr/bin/env bash
# Runs the tests, after making the environment if it is missing.
# usage: bash tools/run_tests.sh [pytest arguments]      e.g. -m slow, or tests/ops -x
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/env.sh")
if ! "$python" -c 'import pytest' 2>/dev/null; then
  echo "error: $python has no pytest: install pytest there, or deactivate that environment and run again" >&2
  exit 1
fi
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # rpe_d2 is not installed in a borrowed environment
# On two to four cores at once, a file of tests on one of them; each process computes with one thread.
cores=$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')
if [ "$cores" -gt 1 ] && "$python" -c 'import xdist' 2>/dev/null; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  set -- -n "$cores" --dist loadfile "$@"
fi
exec "$python" -m pytest "$@"
