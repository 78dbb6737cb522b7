#!/usr/bin/env python3
"""Refines label maps of any model. Example:

python tools/refine.py my_images my_labels --output refined
"""

import sys

from rpe_d2.cli.refine import main

if __name__ == "__main__":
    sys.exit(main())
