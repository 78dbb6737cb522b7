"""Command lines. Each module parses arguments, calls the other packages and prints results."""
