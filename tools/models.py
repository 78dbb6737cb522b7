#!/usr/bin/env python3
"""Lists the models that come with rpe_d2. Example:

python tools/models.py nuclei
"""

import sys

from rpe_d2.cli.models import main

if __name__ == "__main__":
    sys.exit(main())
