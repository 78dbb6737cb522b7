#!/usr/bin/env python3
"""Writes the generated tables of README.md anew: configuration keys and results/*.json."""

from pathlib import Path

from rpe_d2.engine.readme import update_readme

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    readme = root / "README.md"
    readme.write_text(update_readme(readme.read_text(), root / "results"))
