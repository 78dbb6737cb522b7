#!/usr/bin/env python3
"""Trains a model on pictures and label maps; settings follow from the data. Example:

python tools/fit.py my_images my_labels --minutes 60 --output my_model
"""

import os
import sys

# Beside other programs, threads that spin for long make a step several times slower
# (docs/benchmarks.md). The variable is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from rpe_d2.cli.fit import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
