#!/usr/bin/env python3
"""Trains a model on pictures and label maps; settings follow from the data. Example:

python tools/fit.py my_images my_labels --minutes 60 --output my_model
"""

import sys

from rpe_d2.cli.fit import main

if __name__ == "__main__":
    sys.exit(main())
