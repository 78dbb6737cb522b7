#!/usr/bin/env python3
"""Evaluates boundary maps as BSDS500 does: ODS, OIS, AP and the precision-recall curve. Example:

python tools/eval_bsds.py --pred output/boundaries --gt BSDS500/groundTruth/test \
    --json output/bsds.json --plot output/bsds.png
"""

import sys

from rpe_d2.cli.eval_bsds import main

if __name__ == "__main__":
    sys.exit(main())
