#!/usr/bin/env python3
"""Says what is there of PASCAL VOC 2012 and SBD, and what is missing. Example:

python tools/prepare_voc.py data/voc

Downloads nothing. The folder is then the value of DATASETS.VOC.
"""

import sys

from rpe_d2.cli.prepare_voc import main

if __name__ == "__main__":
    sys.exit(main())
