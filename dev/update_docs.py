#!/usr/bin/env python3
"""Rewrites the generated tables of README.md and docs/.

usage: python dev/update_docs.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.docs_tables import update_pages  # noqa: E402

if __name__ == "__main__":
    for page, text in update_pages(ROOT).items():
        page.write_text(text)
