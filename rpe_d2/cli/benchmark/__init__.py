"""``tools/benchmark.py``: time and memory of operators, models, proposals and processes."""
