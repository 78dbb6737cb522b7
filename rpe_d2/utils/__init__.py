"""Errors, files, safe loading, and the readers that data and evaluation share."""
