"""Counting the floating-point operations of a model."""

from typing import Any, Dict, List

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn


def inference_flops(model: nn.Module, images: List[Dict[str, Any]]) -> float:
    """Counts the multiply-adds of inference, as Detectron2 counts them.

    Args:
        model: a Detectron2 model in evaluation mode.
        images: its input, Detectron2's list of dicts.

    Returns:
        The number of multiply-adds; each counts as one operation.
    """
    with torch.no_grad():
        counts = FlopCountAnalysis(model, images)
        counts.set_op_handle("aten::scaled_dot_product_attention", attention_flops)
        counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts.tracer_warnings("none")
        return float(counts.total())


def attention_flops(inputs: List[Any], outputs: List[Any]) -> float:
    """Counts the multiply-adds of softmax(Q K^T) V; an operator handle for fvcore.

    Args:
        inputs: traced Q (..., N, D), K (..., M, D) and V (..., M, E).
        outputs: not used.
    """
    query, key, value = (item.type().sizes() for item in inputs[:3])
    pairs = key[-2]
    for side in query[:-1]:
        pairs *= side
    return float(pairs * (query[-1] + value[-1]))
