#!/usr/bin/env python3
"""Segments pictures and writes label maps. Example:

python tools/predict.py 'my_images/*.png' --model output/mine --output labels
"""

import sys

from rpe_d2.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
