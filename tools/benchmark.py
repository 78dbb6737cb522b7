#!/usr/bin/env python3
"""Measures time and peak memory of this package's operators against their dense form. Example:

python tools/benchmark.py mean-shift --points 4096 --dim 32 --loops 5 --threads 2 --json mean_shift.json
"""

import sys

from rpe_d2.cli.benchmark.operators import main

if __name__ == "__main__":
    sys.exit(main())
