"""Inference on images that are not part of a data set."""
