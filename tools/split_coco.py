#!/usr/bin/env python3
"""Splits a COCO-format file by images into a part for training and a held-out part. Example:

python tools/split_coco.py data/train.json --fraction 0.2 --seed 1 --output output/split

Or writes the first images only, on which proposals are usually evaluated:

python tools/split_coco.py annotations/instances_val2014.json --first 5000 --output output/split
"""

import sys

from rpe_d2.cli.split_coco import main

if __name__ == "__main__":
    sys.exit(main())
