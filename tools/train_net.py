#!/usr/bin/env python3
"""Trains and evaluates a configuration, with Detectron2's flags. Example:

python tools/train_net.py --config-file configs/rpe_coco.yaml --num-gpus 8
"""

import os
import sys

# Beside other programs, threads that spin for long make a step several times slower
# (docs/benchmarks.md). The variable is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from rpe_d2.cli.train_net import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
