"""Inference on images that belong to no data set."""
