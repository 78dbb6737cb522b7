"""What demo and visualize share: finding pictures and loading a trained model."""

import argparse
import glob
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.datasets import register_present_datasets
from rpe_d2.engine.run_classes import read_classes
from rpe_d2.engine.setup import read_config, use_available_device

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(patterns: Sequence[str]) -> List[str]:
    """Files that are named, that lie in named folders (by suffix, not deeper) or that match globs.

    Raises:
        ValueError: nothing was found for a pattern.
    """
    files: List[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = [
                str(path)
                for path in sorted(Path(pattern).iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES
            ]
        elif os.path.exists(pattern):
            found = [pattern]
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
            found = [path for path in matches if os.path.isfile(path)]
        if not found:
            raise ValueError(f"--input {pattern}: no image there")
        files.extend(found)
    return list(dict.fromkeys(files))


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that demo and visualize share; the overrides come after all of them."""
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="instances below are left out; default: 0.5, but 0.1 for PixelEmbeddingNet, whose instances hardly "
        "overlap",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )


def predictor_config(args: argparse.Namespace, dataset: Optional[str] = None) -> CfgNode:
    """Configuration of the shared flags; fills in ``args.confidence_threshold`` where the user names none.

    Args:
        dataset: the only data set that has to be there.
    """
    cfg = read_config(args.config_file, args.opts)
    use_available_device(cfg)
    # Without a data set only names of classes are needed, which the run may have kept: its data are not read.
    if dataset or read_classes(args.config_file) is None:
        register_present_datasets(cfg, dataset)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    if args.confidence_threshold is None:
        is_rpe = cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"
        args.confidence_threshold = 0.1 if is_rpe else 0.5
    return cfg


def check_needs_only_pictures(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: at inference the model needs more than pictures.
    """
    model = cfg.MODEL
    if model.META_ARCHITECTURE == "SPNRefiner":
        raise ValueError(
            "MODEL.META_ARCHITECTURE is SPNRefiner, which refines given masks; allowed: models that find something "
            "in a picture, and SPNRefiner with tools/refine_masks.py"
        )
    if model.META_ARCHITECTURE == "PixelEmbeddingNet" and model.RPE.GROUPING == "kmeans":
        raise ValueError(
            "MODEL.RPE.GROUPING is kmeans, which needs the true number of instances; allowed: mean_shift, components"
        )
    if model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, which needs files of proposals; allowed: "
            "generators that take a picture, RPN"
        )


def with_instances(output: Dict[str, Any]) -> Dict[str, Any]:
    """A model's output for one image; proposals, where there is nothing else, as instances of the first class.

    Their scores are the sigmoid of their objectness; soft masks, where they have any, are pasted into the image.
    """
    if "proposals" not in output or "instances" in output:
        return output
    proposals = output["proposals"].to("cpu")
    instances = Instances(proposals.image_size)
    instances.pred_boxes = proposals.proposal_boxes
    instances.scores = proposals.objectness_logits.sigmoid()
    instances.pred_classes = torch.zeros(len(proposals), dtype=torch.int64)
    if proposals.has("proposal_masks"):
        soft = proposals.proposal_masks.float() / 255
        boxes = proposals.proposal_boxes.tensor
        instances.pred_masks = paste_masks_in_image(
            soft, boxes, proposals.image_size, threshold=0.5
        )
    return {**output, "instances": instances}


def build_predictor(cfg: CfgNode) -> DefaultPredictor:
    """Detectron2's predictor with weights that fit.

    Raises:
        ValueError: no weights, no such file, or of another model.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("no weights: give --weights or MODEL.WEIGHTS")
    if "://" not in weights and not PathManager.isfile(weights):
        raise ValueError(f"weights {weights}: no such file")
    unloaded = cfg.clone()
    unloaded.defrost()
    unloaded.MODEL.WEIGHTS = ""
    predictor = DefaultPredictor(unloaded)
    ModelCheckpointer(predictor.model, complete=True).load(weights)
    return predictor
