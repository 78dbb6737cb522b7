#!/usr/bin/env python3
"""Shows a page in the browser that segments uploaded images. Example:

python tools/serve.py --model output/quickstart
"""

import sys

from rpe_d2.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
