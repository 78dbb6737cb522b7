"""Command lines. Each module parses its arguments, calls the packages below it and prints."""
