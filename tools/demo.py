#!/usr/bin/env python3
"""Runs a model on images or a video; writes visualizations and COCO results. Example:

python tools/demo.py --config-file output/mine/config.yaml \
    --weights output/mine/model_final.pth --input 'my_images/*.jpg' --output found
"""

import sys

from rpe_d2.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
