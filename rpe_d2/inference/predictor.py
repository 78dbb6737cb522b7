"""Image search and model loading for the tools that run a model on images."""

import argparse
import glob
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from torch import nn

from rpe_d2.config import add_rpe_config
from rpe_d2.data import resizing_of_tests
from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.datasets import register_present_datasets
from rpe_d2.engine.host_models import default_confidence_threshold, inference_inputs
from rpe_d2.engine.run_classes import read_classes
from rpe_d2.engine.run_errors import TooFewValues, named_run_errors
from rpe_d2.engine.setup import read_config, use_available_device
from rpe_d2.utils.image_files import image_exists, list_images
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.windows import is_zarr

from .model_folders import CONFIG, find_model_folder, weights_of_folder

__all__ = [
    "Predictor",
    "add_predictor_arguments",
    "check_needs_only_pictures",
    "find_images",
    "model_config",
    "model_digest",
    "planes_of",
    "predictor_config",
    "separate_overrides",
    "with_instances",
]

# What models need besides images, in words.
_INPUTS = {
    "num_instances": "the true number of instances, because MODEL.RPE.GROUPING is kmeans",
    "coarse_masks": "masks to refine; rpe-d2 refine-masks refines masks",
    "proposals": "files of proposals",
    "key_frame": "a key frame; rpe-d2 propagate-video carries its colors or masks through a video",
}


def find_images(patterns: Sequence[str], argument: str = "--input") -> List[str]:
    """Finds image files.

    Args:
        patterns: paths of files, folders or globs. For a folder, the files are taken that
            :func:`rpe_d2.utils.image_files.list_images` finds. Subfolders are not searched.
        argument: name of the argument that the patterns come from, for messages.

    Returns:
        The paths without duplicates, in the order of the patterns.

    Raises:
        ValueError: A pattern matches nothing.
    """
    files: List[str] = []
    for pattern in patterns:
        if is_zarr(pattern):
            matches = [os.path.normpath(pattern)]
        elif os.path.isdir(pattern):
            inside = (os.path.join(pattern, name) for name in sorted(os.listdir(pattern)))
            matches = [*list_images(pattern), *filter(is_zarr, inside)]
        elif os.path.exists(pattern) or image_exists(pattern):
            matches = [pattern]
        else:
            paths = sorted(glob.glob(pattern, recursive=True))
            matches = [path for path in paths if os.path.isfile(path)]
        if not matches:
            raise ValueError(f"{argument} {pattern}: no image found")
        files.extend(matches)
    return list(dict.fromkeys(files))


def planes_of(reader: ImageReader, files: Sequence[str]) -> List[str]:
    """Lists the planes of image files, each under a name of its own, such as ``stack.tif[3]``.

    A file of one plane keeps its name. So does a file that cannot be read; the error is raised when
    it is read as an image.
    """
    names: List[str] = []
    for file in files:
        try:
            names += reader.planes(file)
        except UnreadableImage:
            names.append(file)
    return names


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that demo and visualize share, and the overrides after all flags."""
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="omit instances below this score; default: the model's own, for most models 0.5",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )


def separate_overrides(args: argparse.Namespace) -> None:
    """Moves KEY VALUE overrides from ``args.input`` to ``args.opts``.

    ``--input`` takes any number of paths, so argparse takes the overrides for further paths.
    """
    cfg = get_cfg()
    add_rpe_config(cfg)
    sections = set(cfg)
    for index, text in enumerate(args.input or ()):
        if text.split(".")[0] in sections and not os.path.exists(text):
            args.opts = [*args.input[index:], *args.opts]
            args.input = args.input[:index]
            return


def predictor_config(args: argparse.Namespace, dataset: Optional[str] = None) -> CfgNode:
    """Builds the configuration from the shared flags.

    Args:
        args: the parsed flags. If ``args.confidence_threshold`` is missing, it is filled in.
        dataset: the name of the only data set that must be available.
    """
    cfg = read_config(args.config_file, args.opts)
    use_available_device(cfg)
    # Without a data set, only the names of the classes are needed. The run may have stored them.
    if dataset or read_classes(args.config_file) is None:
        register_present_datasets(cfg, dataset)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    if args.confidence_threshold is None:
        args.confidence_threshold = default_confidence_threshold(cfg)
    return cfg


def model_config(
    model: Union[str, Path],
    weights: str = "",
    device: Optional[str] = None,
    opts: Sequence[Any] = (),
) -> Tuple[CfgNode, str]:
    """Reads the configuration of a model.

    Args:
        model: the output folder of a training, the name of a model that comes with rpe_d2, or a
            configuration: a file, or the name of one that comes with rpe_d2.
        weights: file of weights. Empty: those of the folder, the best ones if an evaluation chose
            them, or those that the configuration names.
        device: "cpu", "cuda" or "cuda:1". None: a GPU where there is one.
        opts: overrides of the configuration, KEY and VALUE by turns.

    Returns:
        The configuration with its weights, and its file.

    Raises:
        ValueError: There is no such model. The message is one line.
    """
    config = str(model)
    if os.path.isdir(config) or not (os.path.isfile(config) or config.endswith(".yaml")):
        folder = find_model_folder(model)
        config = str(folder / CONFIG)
        weights = weights or weights_of_folder(folder)
    cfg = read_config(config, [*map(str, opts), *(["MODEL.DEVICE", device] if device else [])])
    use_available_device(cfg)
    if weights:
        cfg.MODEL.WEIGHTS = str(weights)
    return cfg, config


def model_digest(model: nn.Module, settings: str) -> str:
    """Returns the SHA-256 of the weights and settings of a model, in hexadecimal digits."""
    digest = hashlib.sha256(settings.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_needs_only_pictures(cfg: CfgNode) -> None:
    """Checks that the model needs nothing but images at inference.

    Raises:
        ValueError: It needs something else, such as masks to refine.
    """
    for name in inference_inputs(cfg):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which needs "
            f"{_INPUTS.get(name, name)}; allowed: models that need images alone"
        )


def with_instances(output: Dict[str, Any]) -> Dict[str, Any]:
    """Adds "instances" to a model's output for one image if it only has proposals.

    The proposals become instances of the first class. Their scores are the sigmoid of the
    objectness logits. If the proposals have soft masks, these are pasted into the image.

    Args:
        output: a model's output for one image.
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


class Predictor:
    """Runs a model on single images, as Detectron2's DefaultPredictor does, in any format.

    Attributes:
        model: the model, in evaluation mode.
        reader: reads image files in the format of the model.
        input_format: ``INPUT.FORMAT``.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the configuration. The model gets the weights of ``MODEL.WEIGHTS``.

        Raises:
            ValueError: ``MODEL.WEIGHTS`` is empty, does not exist or holds weights of another
                model.
        """
        weights = cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError("no weights: give --weights or MODEL.WEIGHTS")
        if "://" not in weights and not PathManager.isfile(weights):
            raise ValueError(f"weights {weights}: no such file")
        self.reader = ImageReader.from_config(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.model = build_model(cfg.clone()).eval()
        ModelCheckpointer(self.model, complete=True).load(weights)
        self._resize = resizing_of_tests(cfg)

    def network_input(self, image: np.ndarray) -> Dict[str, Any]:
        """Returns the model's input for an image.

        Args:
            image: (H, W, C) in the format of the model.

        Returns:
            A dict with ``image`` (C, H', W') float32, resized, and ``height`` and ``width`` of the
            given one.

        Raises:
            TooFewValues: The image is so narrow that it has no pixels after resizing.
        """
        image = np.ascontiguousarray(image)
        transform = self._resize.get_transform(image)
        if min(getattr(transform, name, 1) for name in ("new_h", "new_w")) < 1:
            raise TooFewValues(
                f"an image of {image.shape[1]} x {image.shape[0]} pixels has no pixels left after "
                "resizing; allowed: a larger INPUT.MAX_SIZE_TEST"
            )
        resized = transform.apply_image(image)
        if resized.ndim == 2:
            resized = resized[:, :, None]
        return {
            "image": torch.as_tensor(resized.astype("float32").transpose(2, 0, 1)),
            "height": image.shape[0],
            "width": image.shape[1],
        }

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Dict[str, Any]:
        """Runs the model.

        Args:
            image: (H, W, C) in the format of the model, as ``reader`` returns it.

        Returns:
            The model's output for the image.

        Raises:
            TooFewValues: The image is too small for the network. The message is one line.
        """
        with named_run_errors():
            return self.model([self.network_input(image)])[0]
