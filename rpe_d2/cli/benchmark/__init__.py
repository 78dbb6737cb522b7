"""``rpe-d2 benchmark``: time and memory of operators, models, proposal generators and processes."""
