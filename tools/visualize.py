#!/usr/bin/env python3
"""Draws ground truth and a model's predictions, one PNG per image. Example:

python tools/visualize.py --config-file configs/quickstart/rpe_shapes.yaml \
    --weights output/quickstart/model_final.pth --dataset shapes_val --num-images 4 \
    --output pictures
"""

import sys

from rpe_d2.cli.visualize import main

if __name__ == "__main__":
    sys.exit(main())
