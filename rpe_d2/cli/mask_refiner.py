"""A mask refiner for images on disk, and the header that identifies an interrupted run."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from rpe_d2.engine.run_errors import TooFewValues
from rpe_d2.inference.predictor import Predictor
from rpe_d2.utils.files import make_writable_folder, replacing_file, write_new_file
from rpe_d2.utils.image_files import image_stem
from rpe_d2.utils.images import to_rgb
from rpe_d2.utils.json_text import parse_json
from rpe_d2.utils.label_maps import unlabeled_value
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.visualization.figure import Panel, draw_figure

_START_OVER = "delete it, or choose another --output, to start over"
_MASKS_AT_ONCE = 128


class MaskRefiner:
    """Applies a model that refines masks to image files."""

    def __init__(self, predictor: Predictor, sparse: bool):
        """
        Args:
            predictor: predictor of the model.
            sparse: whether :meth:`labels` fills unlabeled pixels, or else refines the labeled
                ones.
        """
        self._predictor = predictor
        self._model = predictor.model
        self._sparse = sparse

    def item(self, file: Path) -> Dict[str, Any]:
        """Reads the model's input for one image.

        Returns:
            A dict with ``image``, resized for the network, and ``height`` and ``width`` of the
            file.

        Raises:
            UnreadableImage: If the file cannot be read or is too small for the model.
        """
        image = self._predictor.reader(str(file))
        try:
            return self._predictor.network_input(image)
        except TooFewValues as error:
            raise UnreadableImage(f"{file}: {error}") from error

    def drawable(self, file: Path) -> np.ndarray:
        """Reads an image (H, W, 3) uint8 RGB as the model sees it, for a figure."""
        return to_rgb(self._predictor.reader.read(str(file)))

    def masks(self, item: Dict[str, Any], masks: np.ndarray) -> np.ndarray:
        """Refines the masks of an image.

        Args:
            item: the model's input for the image.
            masks: (R, H, W) bool.

        Returns:
            The refined masks (R, H, W) bool.
        """
        parts = []
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            part = torch.from_numpy(masks[start : start + _MASKS_AT_ONCE])
            instances = Instances(tuple(part.shape[1:]), pred_masks=part)
            refined = self._model([{**item, "instances": instances}])[0]["instances"]
            parts.append(refined.pred_masks.cpu().numpy())
        return np.concatenate(parts)

    def labels(self, item: Dict[str, Any], labels: np.ndarray) -> np.ndarray:
        """Refines the label map of an image, or fills its unlabeled pixels.

        Args:
            item: the model's input for the image.
            labels: (H, W) uint8 or uint16.

        Returns:
            The new label map (H, W) of the same dtype.
        """
        unlabeled = unlabeled_value(labels)
        present = np.setdiff1d(labels, [unlabeled])
        if len(present) == 0:
            return labels
        scores = torch.from_numpy(labels == present[:, None, None]).float()
        key = "sparse_labels" if self._sparse else "sem_seg"
        best = self._model([{**item, key: scores}])[0][key].argmax(dim=0).cpu().numpy()
        refined = present[best].astype(labels.dtype)
        replaced = (labels == unlabeled) == self._sparse
        return np.where(replaced, refined, labels)


def run_header(cfg: CfgNode, args: argparse.Namespace, digest: str) -> Dict[str, Any]:
    """Describes everything that the output depends on.

    An interrupted run is continued only by a run with the same header.

    Args:
        cfg: the configuration, with the weights.
        args: the parsed arguments.
        digest: hash of the input.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    rest = cfg.clone()
    rest.defrost()
    rest.MODEL.WEIGHTS = ""
    return {
        "input": digest,
        "configuration": hashlib.sha256(rest.dump().encode()).hexdigest(),
        "weights": [str(weights), weights.stat().st_mtime if weights.is_file() else None],
        "--sparse": args.sparse,
        "--keep": args.keep,
    }


def check_header(path: Path, text: str, header: Dict[str, Any]) -> None:
    """Checks that an interrupted run had the same header.

    Args:
        path: file of the interrupted run.
        text: the header in it, JSON.
        header: header of this run.

    Raises:
        ValueError: If the headers differ, or ``text`` is not a header.
    """
    try:
        content = parse_json(text, path)
        different = [name for name in header if content.get(name) != header[name]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} was not written by an interrupted run; {_START_OVER}") from error
    if different:
        raise ValueError(
            f"{path} belongs to a run with another {', '.join(different)}; {_START_OVER}"
        )


def start_folder(
    output: Path, header_file: Path, header: Dict[str, Any], files: Sequence[Path]
) -> None:
    """Creates an output folder, or checks that its files come from a run with this header.

    Args:
        output: the folder.
        header_file: the file of the header in it.
        header: the header of this run.
        files: what this run writes.

    Raises:
        ValueError: A file exists whose origin is not known, or the headers differ.
    """
    path = output / header_file
    if path.exists():
        check_header(path, path.read_text(), header)
        return
    for file in files:
        if file.exists():
            raise ValueError(
                f"--output {output} has {file.name} and no {header_file}, which describes its "
                "origin; allowed: a new folder, or that of an interrupted run"
            )
    make_writable_folder("--output", path.parent)
    with replacing_file(path) as file:
        file.write(json.dumps(header).encode())


def write_panels(folder: Path, file: Path, panels: List[Panel], image: np.ndarray) -> None:
    """Writes panels of one size, side by side, into a new PNG.

    Args:
        folder: folder of the PNG; created if it does not exist.
        file: file of the image, which names the PNG.
        panels: the panels.
        image: (H, W, 3), the image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw_figure([panels], str(file.name), image.shape[:2])
    write_new_file(folder / f"{image_stem(str(file))}.png", figure)
