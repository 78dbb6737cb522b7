#!/usr/bin/env python3
"""Compares label maps with true ones: S, F1, PQ, AJI, SBD and counts. Example:

python tools/evaluate.py labels my_true_labels
"""

import sys

from rpe_d2.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
