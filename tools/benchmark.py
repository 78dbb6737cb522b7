#!/usr/bin/env python3
"""Measures time and peak memory of operators, models, proposal generators and processes. Example:

python tools/benchmark.py mean-shift --points 4096 --dim 32 --loops 5 --threads 2 \
    --json mean_shift.json
"""

import sys

from rpe_d2.cli.benchmark.main import main

if __name__ == "__main__":
    sys.exit(main())
