#!/usr/bin/env python3
"""Carries colors or masks from key frames through a clip. Example:

python tools/propagate_video.py clip.mp4 --model output/tpn --keys colored_frames --output colored
"""

import sys

from rpe_d2.cli.propagate_video import main

if __name__ == "__main__":
    sys.exit(main())
