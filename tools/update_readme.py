#!/usr/bin/env python3
"""Writes the generated tables of README.md and docs/ anew: configuration keys and results/*.json."""

from pathlib import Path

from rpe_d2.engine.readme import update_pages

if __name__ == "__main__":
    for page, text in update_pages(Path(__file__).resolve().parents[1]).items():
        page.write_text(text)
