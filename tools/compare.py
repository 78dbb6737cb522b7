#!/usr/bin/env python3
"""Compares models on one data set: one HTML page with tables, curves and images. Example:

python tools/compare.py configs/nuclei/rpe_R_18.yaml=output/rpe/model_final.pth \
    configs/nuclei/mask_rcnn_R_18.yaml=output/mask_rcnn/model_final.pth \
    --dataset nuclei_val --output comparison --opts DATASETS.COCO_JSONS \
    '["nuclei_train=DIR/train.json", "nuclei_val=DIR/val.json"]'
"""

import sys

from rpe_d2.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
