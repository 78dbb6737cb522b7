"""The mathematics: tensors in, tensors out. No Detectron2, no configuration, no files."""
