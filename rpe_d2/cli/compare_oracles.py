"""The AP that a model would have if one of its steps made no mistakes."""

from collections import defaultdict
from typing import Any, Dict, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from pycocotools.coco import COCO
from torch import nn
from tqdm import tqdm

from rpe_d2.data import PixelLabelMapper, resizing_of_tests
from rpe_d2.evaluation.coco_scores import instance_scores
from rpe_d2.evaluation.error_analysis import with_true_classes, with_true_scores
from rpe_d2.evaluation.ground_truth import instance_results


def oracle_scores(
    model: nn.Module,
    cfg: CfgNode,
    items: Sequence[Dict[str, Any]],
    truth: COCO,
    metadata: Metadata,
    results: List[Dict[str, Any]],
    limit: int,
) -> Dict[str, float]:
    """Computes COCO's mask AP in percent for every oracle.

    Any model has "true classes" and "true scores". A model with a method ``oracle_instances`` also
    has those that it returns.

    Args:
        model: the model in evaluation mode.
        cfg: its configuration.
        items: dicts of the dataset.
        truth: ground truth of the same images.
        metadata: metadata of the dataset.
        results: the model's predictions in COCO's results format, with masks.
        limit: largest number of predictions evaluated in an image.
    """
    of_oracle = {
        "true classes": with_true_classes(truth, results),
        "true scores": with_true_scores(truth, results),
    }
    if hasattr(model, "oracle_instances"):
        mapper = PixelLabelMapper(cfg, is_train=True, augmentations=[resizing_of_tests(cfg)])
        outputs = defaultdict(list)
        with torch.no_grad():
            for item in tqdm(items, desc="oracles", unit="image"):
                for name, instances in model.oracle_instances(mapper(item)).items():
                    output = {"instances": instances}
                    outputs[name] += instance_results(output, item["image_id"], metadata)
        of_oracle.update(outputs)
    return {
        name: instance_scores(truth, found, limit, "segm")["AP"]
        for name, found in of_oracle.items()
    }
