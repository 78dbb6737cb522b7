#!/usr/bin/env python3
"""Converts objects between label maps, COCO's format, GeoJSON and other files. Example:

python tools/convert.py my_labels mine.json --to coco --images my_images
"""

import sys

from rpe_d2.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
