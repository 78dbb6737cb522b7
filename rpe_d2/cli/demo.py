"""The command line of tools/demo.py: a model on a user's own pictures and videos."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from rpe_d2.engine.run_classes import drawing_metadata
from rpe_d2.inference.predictor import (
    add_predictor_arguments,
    build_predictor,
    check_needs_only_pictures,
    find_images,
    predictor_config,
    with_instances,
)
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import free_path, make_writable_folder, write_new_file
from rpe_d2.utils.readable import UNREADABLE
from rpe_d2.visualization import draw_classes, draw_instances, instance_colors
from rpe_d2.visualization.instances import mask_iou, match_by_iou

RESULTS = "coco_instances_results.json"
# More names than this would hide the picture.
_MOST_NAMES = 30
_BOUNDARY_COLOR = np.array([255, 0, 0])
# Masks are compared between frames at about this many pixels a side.
_TRACKING_SIDE = 160
_TRACKING_IOU = 0.3


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the model of any Detectron2 configuration on images or a video.

    Into ``--output`` go a PNG an image (or one MP4), and ``coco_instances_results.json`` in COCO's
    results format:
    image_id is 1, 2, … in the order of the files (frames), and every entry also has their
    file_name; category_id is that of the data of the configuration's run where it is known, else
    the class's index. Nothing is overwritten: ``NAME-2.png`` and so on. A file that cannot be read
    is reported and skipped; where one ends the run, the results of those before are written.

    Returns:
        Exit status: 0, 1 where nothing could be read, 2 where a key or a file is at fault, in one
            line.
    """
    args = _parse(argv)
    with one_line_errors():
        cfg = predictor_config(args)
        check_needs_only_pictures(cfg)
        files = find_images(args.input) if args.input else []
        video = _open_video(args.video_input) if args.video_input else None
        output = Path(args.output)
        make_writable_folder("--output", output)
        predictor = build_predictor(cfg)
        metadata = drawing_metadata(cfg, args.config_file)
        painter = _Painter(metadata, args.confidence_threshold)
    if video is not None:
        pictures = _run_video(predictor, painter, video, args.video_input, output)
    else:
        pictures = _run_images(predictor, painter, files, output)
    written: Dict[Path, None] = {}  # in this order; frames share a file
    results: List[Dict[str, Any]] = []
    with one_line_errors((OSError,)):
        try:
            for path, found in pictures:
                written[path] = None
                results += found
        finally:
            for path in written:
                print(path)
            if written:
                print(write_new_file(output / RESULTS, json.dumps(results).encode()))
    if not written:
        print(f"error: none of {len(files)} images could be read", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Runs a model on pictures or a video; needs no display."
    )
    add_predictor_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="image files, folders or quoted globs"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video that OpenCV can read")
    return parser.parse_args(argv)


# A picture's file and its entries in the results.
Found = Tuple[Path, List[Dict[str, Any]]]


def _run_images(
    predictor: DefaultPredictor, painter: "_Painter", files: List[str], output: Path
) -> Iterator[Found]:
    for image_id, file in enumerate(tqdm(files, desc="images", unit="image"), start=1):
        try:
            bgr = read_image(file, format="BGR")
        except UNREADABLE as error:
            tqdm.write(f"skipped {file}: {one_line(error)}", file=sys.stderr)
            continue
        picture, found = painter.paint(bgr, predictor(bgr))
        painter.forget()
        content = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
        path = write_new_file(output / f"{Path(file).stem}.png", content)
        yield path, painter.results(found, image_id, file)


def _open_video(file: str) -> cv2.VideoCapture:
    """
    Raises:
        ValueError: the file is not there, or no video.
    """
    capture = cv2.VideoCapture(file)
    if not capture.isOpened():
        reason = "is not a video that OpenCV can read" if os.path.exists(file) else "no such file"
        raise ValueError(f"--video-input {file}: {reason}")
    return capture


def _run_video(
    predictor: DefaultPredictor,
    painter: "_Painter",
    capture: cv2.VideoCapture,
    file: str,
    output: Path,
) -> Iterator[Found]:
    """
    Raises:
        OSError: no frame can be read, or the video not be written.
    """
    path = free_path(output / f"{Path(file).stem}.mp4")
    frames_per_second = capture.get(cv2.CAP_PROP_FPS) or 25.0
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    writer = None
    try:
        progress = tqdm(_frames(capture), total=max(count, 0) or None, desc="frames", unit="frame")
        for frame_id, bgr in enumerate(progress, start=1):
            picture, found = painter.paint(bgr, predictor(bgr))
            if writer is None:
                size = picture.shape[1::-1]
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(path), codec, frames_per_second, size)
                if not writer.isOpened():
                    raise OSError(f"{path} cannot be written: OpenCV has no MP4 encoder here")
            writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
            yield path, painter.results(found, frame_id, f"{file}#{frame_id}")
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise OSError(f"--video-input {file}: no frame could be read")


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield frame


class _Painter:
    """Draws a model's output; through the frames of a video an instance keeps its colour."""

    def __init__(self, metadata: Metadata, min_score: float):
        self._metadata = metadata
        self._min_score = min_score
        self._names: List[str] = metadata.get("thing_classes", [])
        ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
        self._category_of = {index: category for category, index in ids.items()}
        self.forget()

    def forget(self) -> None:
        """What comes next is another picture, no next frame."""
        self._last_masks: Optional[np.ndarray] = None
        self._last_numbers = np.zeros(0, int)
        self._next_number = 0

    def paint(
        self, bgr: np.ndarray, output: Dict[str, Any]
    ) -> Tuple[np.ndarray, Optional[Instances]]:
        """The picture (H, W, 3) uint8 RGB with what was found, and the instances above the threshold."""
        rgb = np.ascontiguousarray(convert_image_to_rgb(bgr, "BGR"))
        output = with_instances(output)
        found = None
        if "instances" in output:
            found = output["instances"].to("cpu")
            found = found[found.scores >= self._min_score]
            if found.has("pred_masks") and "panoptic_seg" not in output:
                return self._paint_masks(rgb, found), found
        if "boundaries" in output:
            strength = output["boundaries"].cpu().numpy()[:, :, None]  # (H, W, 1), 0-1
            return (rgb * (1 - strength) + _BOUNDARY_COLOR * strength).astype(np.uint8), None
        if "sem_seg" in output and "panoptic_seg" not in output and found is None:
            return draw_classes(rgb, output["sem_seg"].argmax(dim=0), self._metadata), None
        visualizer = Visualizer(rgb, self._metadata)
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            drawn = visualizer.draw_panoptic_seg_predictions(segments.cpu(), info)
        else:
            drawn = visualizer.draw_instance_predictions(found)
        return drawn.get_image(), found

    def results(
        self, found: Optional[Instances], image_id: int, file_name: str
    ) -> List[Dict[str, Any]]:
        """COCO results of one picture, each with its file name."""
        if found is None:
            return []
        results = instances_to_coco_json(found, image_id)
        for result in results:
            index = result["category_id"]
            result["category_id"] = self._category_of.get(index, index)
            result["file_name"] = file_name
        return results

    def _paint_masks(self, rgb: np.ndarray, found: Instances) -> np.ndarray:
        masks = found.pred_masks.numpy().astype(bool)
        numbers = self._track(masks)
        colors = instance_colors(int(numbers.max(initial=-1)) + 1)[numbers]
        return draw_instances(rgb, masks, colors, self._labels(found))

    def _track(self, masks: np.ndarray) -> np.ndarray:
        """A number for each instance: that of the one it covers in the frame before, or a new one."""
        step = max(1, max(masks.shape[1:]) // _TRACKING_SIDE)
        small = masks[:, ::step, ::step]
        numbers = np.full(len(masks), -1)
        if self._last_masks is not None and self._last_masks.shape[1:] == small.shape[1:]:
            match = match_by_iou(mask_iou(small, self._last_masks), _TRACKING_IOU)
            numbers[match >= 0] = self._last_numbers[match[match >= 0]]
        new = np.flatnonzero(numbers < 0)
        numbers[new] = self._next_number + np.arange(len(new))
        self._next_number += len(new)
        self._last_masks, self._last_numbers = small, numbers
        return numbers

    def _labels(self, found: Instances) -> List[str]:
        classes = found.pred_classes.tolist()
        if len(self._names) == 1 or len(classes) > _MOST_NAMES:
            return [""] * len(classes)
        known = dict(enumerate(self._names))
        return [
            f"{known.get(index, f'class {index}')} {100 * score:.0f}%"
            for index, score in zip(classes, found.scores.tolist())
        ]
