#!/usr/bin/env python3
"""Splits one COCO-format file by images into a part to fit and a part to choose settings on. Example:

python tools/split_coco.py data/train.json --fraction 0.2 --seed 1 --output output/split

or takes its first images, as proposals are evaluated on COCO:

python tools/split_coco.py annotations/instances_val2014.json --first 5000 --output output/split
"""

import sys

from rpe_d2.cli.split_coco import main

if __name__ == "__main__":
    sys.exit(main())
