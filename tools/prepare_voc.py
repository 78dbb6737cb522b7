#!/usr/bin/env python3
"""Reports which files of PASCAL VOC 2012 and SBD are present and which are missing. Example:

python tools/prepare_voc.py data/voc

Downloads nothing. The folder is then the value of DATASETS.VOC.
"""

import sys

from rpe_d2.cli.prepare_voc import main

if __name__ == "__main__":
    sys.exit(main())
