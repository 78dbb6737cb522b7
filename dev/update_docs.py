#!/usr/bin/env python3
"""Rewrites the generated tables of README.md and docs/: configuration keys and results/*.json.

usage: python dev/update_docs.py
"""

from pathlib import Path

from docs_tables import update_pages

if __name__ == "__main__":
    for page, text in update_pages(Path(__file__).resolve().parents[1]).items():
        page.write_text(text)
