"""Mathematical operators on tensors, independent of Detectron2, configurations and files."""
