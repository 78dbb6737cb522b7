#!/usr/bin/env python3
"""Computes or converts the proposals of a data set. Example:

python tools/precompute_proposals.py --config-file configs/proposals/rpe_shapes.yaml \
    --dataset shapes_val --method selective_search --output output/selective_search.pkl \
    --evaluate output/selective_search.json
"""

import sys

from rpe_d2.cli.precompute_proposals import main

if __name__ == "__main__":
    sys.exit(main())
