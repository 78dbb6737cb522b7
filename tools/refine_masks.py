#!/usr/bin/env python3
"""Refines masks of any model, COCO results or semantic PNGs, with a trained refiner. Example:

python tools/refine_masks.py --config-file output/refiner_shapes/config.yaml \
    --weights output/refiner_shapes/model_final.pth --images my_images \
    --input found/coco_instances_results.json --output found/refined.json
"""

import sys

from rpe_d2.cli.refine_masks import main

if __name__ == "__main__":
    sys.exit(main())
