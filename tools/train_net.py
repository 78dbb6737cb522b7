#!/usr/bin/env python3
"""Trains and evaluates a configuration, with Detectron2's flags. Example:

python tools/train_net.py --config-file configs/rpe_coco.yaml --num-gpus 8
"""

import sys

from rpe_d2.cli.train_net import main

if __name__ == "__main__":
    sys.exit(main())
