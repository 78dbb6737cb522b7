"""Sharper label maps, masks and probabilities for an image, from any model."""

import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch

from rpe_d2.utils.intensity import parse_intensity

from .acceptance import accept_changes
from .label_geometry import compact_labels
from .network import RefinerNetwork, build_refiner_network, propagate_labels
from .proposals import propose_labels, propose_probabilities

__all__ = ["LabelRefiner", "Refined", "refine"]

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "refiner" / "model.safetensors"
_SUM_TOLERANCE = 1e-2
_INTENSITY = "percentile:0.1,99.8"  # as in training


class Refined(NamedTuple):
    """A refined label map, masks or probabilities.

    Attributes:
        result: of the kind, shape and dtype of what was given.
        confidence: (H, W) float32 in 0-1, how probable the label of each pixel is.
        report: "pixels", "changed_pixels", "regions_changed", "regions_kept", "seconds", and
            "objects": for each object that changed, its "area", and the "iou" with what was given.
            Objects are named by their label, or by the index of their mask.
    """

    result: np.ndarray
    confidence: np.ndarray
    report: Dict[str, Any]


class LabelRefiner:
    """Refines label maps, masks and probabilities. Threads may share one."""

    def __init__(
        self,
        network: RefinerNetwork,
        device: Union[str, torch.device] = "cpu",
        num_units: int = 2,
    ):
        """
        Args:
            network: the network with its weights.
            device: where it runs.
            num_units: propagations in sequence, as in training.
        """
        self._num_units = num_units
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, weights: Union[str, Path, None] = None, device: Optional[str] = None
    ) -> "LabelRefiner":
        """Loads a refiner.

        Args:
            weights: a .safetensors file, or a checkpoint of a training of
                ``configs/spn/refiner.yaml``, .pth, which needs Detectron2. None: the weights that
                come with rpe_d2.
            device: "cpu", "cuda" or "cuda:1". None: a GPU where there is one.

        Raises:
            ValueError: The weights cannot be read or do not fit. The message is one line.
        """
        file = WEIGHTS if weights is None else Path(weights)
        network = build_refiner_network()
        load_refiner_weights(network, read_refiner_weights(file), str(file))
        return cls(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def refine(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        *,
        max_shift: float = 8.0,
        may_split: bool = False,
    ) -> Refined:
        """Refines what any model predicted for an image; see :func:`refine`."""
        start = time.perf_counter()
        labels = np.asarray(labels)
        if not max_shift > 0:
            raise ValueError(f"max_shift is {max_shift}; allowed: more than 0 pixels")
        method = self._method(labels)
        pixels = _to_rgb(np.asarray(image), labels.shape[-2:])
        refined = method(pixels, labels, float(max_shift), may_split)
        seconds = round(time.perf_counter() - start, 3)
        return refined._replace(report={**refined.report, "seconds": seconds})

    def _method(self, labels: np.ndarray) -> Any:
        if labels.dtype == bool and labels.ndim in (2, 3):
            return self._refine_masks
        if labels.dtype.kind in "iu" and labels.ndim == 2:
            return self._refine_labels
        if labels.dtype.kind == "f" and labels.ndim == 3:
            total = labels.sum(axis=0, dtype=np.float64)
            if len(labels) and labels.min() >= 0 and abs(total - 1).max(initial=0) < _SUM_TOLERANCE:
                return self._refine_probabilities
            raise ValueError(
                f"probabilities (K, H, W) have values from {labels.min(initial=0):.3g} and sums "
                f"from {total.min(initial=0):.3g} to {total.max(initial=0):.3g}; allowed: 0 or "
                "more, with the sum 1 at each pixel"
            )
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}; allowed: a label map (H, W) of "
            "integers, masks (N, H, W) of bool, or probabilities (K, H, W)"
        )

    def _refine_labels(
        self, image: np.ndarray, labels: np.ndarray, max_shift: float, may_split: bool
    ) -> Refined:
        values, given = compact_labels(labels)
        zero = np.flatnonzero(values == 0)
        background = int(zero[0]) if len(zero) else -1
        proposal = propose_labels(self._run, image, given, max_shift)
        accepted = accept_changes(given, proposal, self._accept, background, may_split)
        new = accepted.labels
        report = {
            "pixels": int(labels.size),
            "changed_pixels": int((new != given).sum()),
            "regions_changed": accepted.regions_changed,
            "regions_kept": accepted.regions_kept,
            "objects": _changes_of_objects(given, new, values, background),
        }
        confidence = np.where(new == given, proposal.given, proposal.best)
        return Refined(values[new].astype(labels.dtype), confidence, report)

    def _refine_masks(
        self, image: np.ndarray, masks: np.ndarray, max_shift: float, may_split: bool
    ) -> Refined:
        """Refines masks that may overlap, in layers of masks that do not."""
        if masks.ndim == 2:
            refined = self._refine_masks(image, masks[None], max_shift, may_split)
            return refined._replace(result=refined.result[0])
        result = masks.copy()
        confidence = np.ones(masks.shape[1:], np.float32)
        report = {"pixels": int(confidence.size), "changed_pixels": 0}
        report |= {"regions_changed": 0, "regions_kept": 0, "objects": {}}
        changed = np.zeros(masks.shape[1:], bool)
        for layer in _layers_without_overlap(masks):
            labels = np.zeros(masks.shape[1:], np.int32)
            for number in layer:
                labels[masks[number]] = number + 1
            part = self._refine_labels(image, labels, max_shift, may_split)
            for number in layer:
                result[number] = part.result == number + 1
            changed |= part.result != labels
            confidence = np.minimum(confidence, part.confidence)
            for name in ("regions_changed", "regions_kept"):
                report[name] += part.report[name]
            report["objects"] |= {n - 1: row for n, row in part.report["objects"].items()}
        report["changed_pixels"] = int(changed.sum())
        return Refined(result, confidence, report)

    def _refine_probabilities(
        self, image: np.ndarray, maps: np.ndarray, max_shift: float, may_split: bool
    ) -> Refined:
        """Refines probabilities. Classes may split, because they are not objects."""
        soft = maps.astype(np.float32)
        given = soft.argmax(axis=0)
        proposal = propose_probabilities(self._run, image, soft, max_shift)
        accepted = accept_changes(given, proposal, self._accept, -1, True)
        taken = accepted.labels == proposal.labels
        result = np.where(taken, proposal.maps, soft).astype(maps.dtype)
        report = {
            "pixels": int(given.size),
            "changed_pixels": int((result.argmax(axis=0) != given).sum()),
            "regions_changed": accepted.regions_changed,
            "regions_kept": accepted.regions_kept,
            "objects": {},
        }
        return Refined(result, result.max(axis=0).astype(np.float32), report)

    @torch.no_grad()
    def _run(
        self, image: np.ndarray, distance: np.ndarray, certainty: np.ndarray, maps: np.ndarray
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Propagates maps over an image; see :data:`rpe_d2.refinement.proposals.Run`."""
        pixels = torch.from_numpy(image.astype(np.float32)).to(self.device)
        pixels = pixels.permute(2, 0, 1)[None]
        near, sure, labels = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)[None]
            for part in (distance, certainty, maps)
        )
        with self._lock:
            gates, trust = self.network(pixels, near, sure)
            refined = propagate_labels(labels, gates, trust, self._num_units)
            return refined[0].cpu().numpy(), trust[0].sigmoid().cpu().numpy()

    @torch.no_grad()
    def _accept(self, features: np.ndarray) -> np.ndarray:
        """Decides which regions of changes are made, by their features (R, F)."""
        return (
            (self.network.acceptance(torch.from_numpy(features).to(self.device)) > 0).cpu().numpy()
        )


def refine(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    max_shift: float = 8.0,
    may_split: bool = False,
    weights: Union[str, Path, None] = None,
    device: Optional[str] = None,
) -> Refined:
    """Refines what any model predicted for an image, with the weights that come with rpe_d2.

    All labels, the background included, compete for the pixels near their boundaries, so neighbors
    neither merge nor overlap. Regions change where a new label is clearly more probable than the
    given one. Objects do not vanish, and do not fall into more parts than they had.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of any number type. The
            0.1 and 99.8 percentiles of its values become black and white.
        labels: a label map (H, W) of integers with 0 for the background, masks (N, H, W) or (H, W)
            of bool, which may overlap, or probabilities (K, H, W) that sum to 1.
        max_shift: no boundary moves by more than this many pixels.
        may_split: whether objects may vanish or fall into parts.
        weights: a file of other weights, .safetensors or .pth.
        device: "cpu", "cuda" or "cuda:1". None: a GPU where there is one.

    Raises:
        ValueError: An argument is not allowed. The message is one line.
    """
    return _loaded(weights, device).refine(image, labels, max_shift=max_shift, may_split=may_split)


@lru_cache(maxsize=1)
def _loaded(weights: Union[str, Path, None], device: Optional[str]) -> LabelRefiner:
    return LabelRefiner.load(weights, device)


def read_refiner_weights(file: Path) -> Dict[str, torch.Tensor]:
    """Reads the weights of a refiner from a .safetensors file or from a checkpoint of a training.

    Raises:
        ValueError: The file cannot be read. The message is one line.
    """
    if file.suffix == ".pth":
        from rpe_d2.utils.safe_loading import load_tensors  # needs Detectron2

        state = load_tensors("weights", str(file))
        state = state.get("model", state) if isinstance(state, dict) else state
        if not isinstance(state, dict):
            raise ValueError(f"{file} holds a {type(state).__name__}; allowed: a checkpoint")
        return {name.removeprefix("network."): value for name, value in state.items()}
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # a damaged file may raise any error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: {reason}; allowed: a .safetensors or .pth file") from error


def load_refiner_weights(
    network: RefinerNetwork, state: Dict[str, torch.Tensor], name: str
) -> None:
    """Loads weights into a network and checks every tensor.

    Args:
        network: the network.
        state: tensors by name, of any floating point type.
        name: what is named in errors.

    Raises:
        ValueError: A tensor is missing, has another shape or is not finite.
    """
    own = network.state_dict()
    for key, value in own.items():
        if key not in state:
            raise ValueError(f"{name} has no {key}; allowed: the weights of a refiner")
        if state[key].shape != value.shape:
            raise ValueError(
                f"{name}: {key} has shape {tuple(state[key].shape)}; allowed: {tuple(value.shape)}"
            )
        if state[key].is_floating_point() and not state[key].isfinite().all():
            raise ValueError(f"{name}: {key} has values that are not finite; allowed: finite ones")
    network.load_state_dict({key: state[key].to(value.dtype) for key, value in own.items()})


def _to_rgb(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Converts an image to (H, W, 3) uint8 RGB."""
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype.kind not in "biuf":
        raise ValueError(
            f"the image is {image.dtype} of shape {image.shape}; allowed: numbers (H, W), "
            "(H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if image.shape[:2] != tuple(size):
        raise ValueError(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels and the labels "
            f"{size[0]} x {size[1]}; allowed: the same size"
        )
    image = parse_intensity(_INTENSITY).to_8bit(image[..., :3])
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def _layers_without_overlap(masks: np.ndarray) -> List[List[int]]:
    """Divides masks into few layers, in each of which no two masks overlap."""
    layers: List[List[int]] = []
    covered: List[np.ndarray] = []
    for number, mask in enumerate(masks):
        if not mask.any():
            continue
        for layer, used in zip(layers, covered):
            if not (used & mask).any():
                break
        else:
            layer, used = [], np.zeros(mask.shape, bool)
            layers.append(layer)
            covered.append(used)
        layer.append(number)
        used |= mask
    return layers


def _changes_of_objects(
    given: np.ndarray, new: np.ndarray, values: np.ndarray, background: int
) -> Dict[int, Dict[str, float]]:
    """Returns the area of each changed object, and its IoU with what was given, by its label."""
    count = len(values)
    before, after = (np.bincount(labels.ravel(), minlength=count) for labels in (given, new))
    both = np.bincount(given[given == new], minlength=count)
    union = before + after - both
    return {
        int(values[index]): {
            "area": int(after[index]),
            "iou": round(float(both[index] / union[index]), 4),
        }
        for index in np.flatnonzero(both < union)
        if index != background
    }
