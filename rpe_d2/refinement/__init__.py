"""Refinement of label maps by spatial propagation, which needs no Detectron2."""
